"""Settings of schemes."""

from pydantic import Field

from lpvit.settings import Section
from lpvit.variants import chooses

SCHEMES = "lpvit.schemes.kinds"


@chooses(scheme=SCHEMES)
class Scheme(Section):
    """What makes a model compute less beside pruned blocks."""

    scheme: str = Field(description="which; the other keys belong to one scheme each")
