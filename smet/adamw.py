"""Where ``AdamW`` was: pickles and imports of earlier versions find it here."""

from smet.optim.front import AdamW as AdamW
