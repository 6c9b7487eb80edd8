"""A run done again from its record alone, in a new folder, and compared with what it was."""

from expresser.repeating.comparing import differences as differences
from expresser.repeating.line import Line as Line
from expresser.repeating.recorded import Recorded as Recorded
from expresser.repeating.recorded import read_recorded as read_recorded
