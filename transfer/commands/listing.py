"""Options that hold several values, separated by commas."""

from widthwise.proxies.validation import ConfigError


def words(text: str | None) -> list[str] | None:
    """Return the words of ``matrix,embedding``; ``none`` has no words, and None stays None."""
    if text is None:
        return None
    return [] if text == "none" else [word.strip() for word in text.split(",")]


def whole_numbers(name: str, text: str) -> list[int]:
    """Return the numbers of ``512,1024``.

    Raises:
        ConfigError: naming the option, where one is not a whole number.
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"{name}: must be whole numbers separated by commas, got {text!r}") from None
