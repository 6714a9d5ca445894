"""The PEFT tuner: which layers are factorised, injection, saving and loading."""
