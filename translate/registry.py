"""The systems by name."""

from translate.babel import Babel
from translate.polarbear import Polarbear
from translate.sailer import Sailer
from translate.sailerx import Sailerx
from translate.scact import Scact
from translate.scmog import Scmog
from translate.system import System

SYSTEMS: dict[str, type[System]] = {
    "babel": Babel,
    "scmog": Scmog,
    "sailer": Sailer,
    "sailerx": Sailerx,
    "polarbear": Polarbear,
    "scact": Scact,
}
