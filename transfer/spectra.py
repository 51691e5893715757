"""Spectra and AlphaDecay's multipliers; they live in `widthwise.proxies.spectra`, where training uses them."""

from widthwise.proxies.spectra import decay_scales, hill_alpha

__all__ = ["decay_scales", "hill_alpha"]
