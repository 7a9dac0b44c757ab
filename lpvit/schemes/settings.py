"""Settings of schemes."""

from pydantic import Field

from lpvit.settings import Section
from lpvit.variants import chooses

SCHEMES = "lpvit.schemes.kinds"


@chooses(scheme=SCHEMES)
class Scheme(Section):
    """A scheme that saves computation besides pruning."""

    scheme: str = Field(description="kind of scheme; each of the other keys belongs to one of them")
