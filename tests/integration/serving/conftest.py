"""One installation for all tests of serving, and the models that they deploy."""

from __future__ import annotations

from installation import installation as installation
from installation import models as models
