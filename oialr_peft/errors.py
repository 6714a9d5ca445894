"""The package's own warning category, and words that several errors say."""


class OIALRWarning(UserWarning):
    """Something in an OIALR run needs the user's attention; the run goes on."""


NO_ADAPTER = (
    "Give the model that `get_peft_model` or `PeftModel.from_pretrained` made; one that is merged or compressed has "
    "no adapter any more."
)
