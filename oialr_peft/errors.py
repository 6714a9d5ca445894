"""The package's own warning category."""


class OIALRWarning(UserWarning):
    """Something in an OIALR run needs the user's attention; the run goes on."""
