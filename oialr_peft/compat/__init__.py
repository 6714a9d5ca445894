"""What this package needs of other libraries beyond their public surface, in one place.

Private names are in torch_.py, ddp.py, peft_.py and transformers_.py, each with the versions it was seen in and when
it can go. Functions that are replaced for the whole process, by `patch.patch`:

    function                                         why, and when it can go
    PeftModel.create_or_update_model_card            PEFT asks a tuner nothing about its card; once it does
    PeftModel._upload_modified_files                 transformers writes a blank form over the card; with the one above
    PeftModel.save_pretrained                        weights and config are written one after the other; once PEFT
                                                     writes a save whole or not at all
    PeftModel.load_adapter, .from_pretrained,        a tuner does not see a file before layers are made from its
    PeftAdapterMixin.load_adapter (transformers)     config; once PEFT has a hook for it
    PeftConfigMixin.from_json_file                   a damaged config fails without the file's name; once it has it
    dispatch_default of peft.tuners.lora.model       LoRA knows no two-factor layer; once PEFT has a public table of
                                                     layers for it
    BaseTuner.inject_adapter                         a method's layer asks nothing of the layer that it wraps; once a
                                                     tuner's layer can refuse to be wrapped
    PretrainedConfig.from_dict, .to_dict,            plain transformers must not load a compressed model as a dense
    .to_diff_dict (transformers)                     one; once a config can name the package that it needs
    PreTrainedModel.save_pretrained (transformers)   a dense model made from a compressed one's config would be written
                                                     with its record; once a config belongs to one model

`late.once_imported` watches for the import of diffusers.quantizers.auto, whose tables get a line each; it can go once
diffusers finds methods by an entry point.
"""
