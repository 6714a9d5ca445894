"""Stand-alone compressed checkpoints: written from a live model, loaded through transformers' quantizer registry."""
