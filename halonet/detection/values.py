"""Numbers as JSON has them, checked: some exporters write 64.0, true or "64"."""

LARGEST = 2**32  # pixels that run lengths can count; a number that isn't finite isn't below it


def as_whole(value: object) -> int | None:
    """A whole number of 64 bits, taken from 64.0 too; None for anything else, true and false."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    return None


def are_numbers(values: object, count: int | None = None) -> bool:
    """Whether it is a list of numbers below 2**32, `count` of them; true and false are none."""
    return (
        isinstance(values, list)
        and (count is None or len(values) == count)
        and all(
            isinstance(one, float | int) and not isinstance(one, bool) and abs(one) < LARGEST
            for one in values
        )
    )
