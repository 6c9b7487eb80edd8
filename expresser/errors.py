"""The one exception for input a person can mend: the command line prints its message alone and exits with 2."""


class InputError(ValueError):
    """Bad input. The message names the file, the rule, the values met and the way out."""
