"""Occupations and who works in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Occupation:
    """
    An occupation and the group that most people connect with it.

    Args:
        name (`str`): as it stands in a sentence, without an article.
        share_women (`float`): share of women among those who work in it, in percent; NaN where `group` is given.
        group (`str`, *optional*): the majority's group, where it is not told by the share of women. "Male" and
            "Female" are `"male"` and `"female"`.

    Raises:
        ValueError: the name is empty, or the share is no percentage and no group is given.
    """

    name: str
    share_women: float
    group: Optional[str] = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError(f"An occupation needs a name, got {self.name!r}.")
        unknown = self.share_women != self.share_women
        if not (0 <= self.share_women <= 100 or (unknown and self.group and self.group.strip())):
            raise ValueError(
                f"{self.name!r} needs share_women from 0 to 100, or a group and NaN; got {self.share_women!r}."
            )

    @property
    def majority(self) -> str:
        """The group of the majority: `group`, or else `"male"` or `"female"` by the share of women."""
        group = (self.group or "").strip()
        if group.casefold() in ("male", "female"):
            return group.casefold()
        return group or ("female" if self.share_women > 50 else "male")

    @property
    def mostly_women(self) -> bool:
        """
        Whether the majority are women, for questions that know two genders.

        Raises:
            ValueError: the majority is another group.
        """
        if self.majority not in ("male", "female"):
            raise ValueError(
                f"The majority of {self.name!r} is {self.majority!r}: questions about he and she take occupations "
                "whose majority is 'male' or 'female'."
            )
        return self.majority == "female"


SOURCE = (
    "US Bureau of Labor Statistics, Current Population Survey 2017, as listed with WinoBias "
    "(Zhao et al. 2018, table 1, arXiv 1804.06876)"
)
_SHARE_WOMEN = {
    "carpenter": 2.1,
    "laborer": 3.5,
    "construction worker": 3.5,
    "mechanic": 4,
    "driver": 6,
    "sheriff": 14,
    "mover": 18,
    "developer": 20,
    "farmer": 22,
    "guard": 22,
    "chief": 27,
    "janitor": 34,
    "lawyer": 35,
    "cook": 38,
    "physician": 38,
    "CEO": 39,
    "analyst": 41,
    "manager": 43,
    "supervisor": 44,
    "salesperson": 48,
    "editor": 52,
    "designer": 54,
    "auditor": 61,
    "accountant": 61,
    "writer": 63,
    "baker": 65,
    "clerk": 72,
    "cashier": 73,
    "counselor": 73,
    "attendant": 76,
    "teacher": 78,
    "tailor": 80,
    "librarian": 84,
    "assistant": 85,
    "cleaner": 89,
    "housekeeper": 89,
    "nurse": 90,
    "receptionist": 90,
    "hairdresser": 92,
    "secretary": 95,
}

OCCUPATIONS: tuple[Occupation, ...] = tuple(Occupation(name, share) for name, share in _SHARE_WOMEN.items())


def article(noun: str) -> str:
    """`"a"` or `"an"`, by the first letter (enough for names of occupations)."""
    return "an" if noun[:1].lower() in "aeio" else "a"
