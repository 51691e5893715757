"""The commands, a module each: a dataclass of light imports whose fields are the options, and its ``run``."""
