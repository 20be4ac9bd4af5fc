"""Exchange with other libraries' adaptation folders: peft. No other library is needed to convert."""

from luthier.convert.exchange import from_peft, to_peft

__all__ = ["from_peft", "to_peft"]
