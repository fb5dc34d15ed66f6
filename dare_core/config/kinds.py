"""What knowledge is about: apart from the tables, so that a DAG file can name the kinds without loading Arrow."""

from typing import Final, Literal

Kind = Literal["item", "user"]
KINDS: Final[tuple[Kind, ...]] = ("item", "user")
