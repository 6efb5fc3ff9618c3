"""Edifice's HGRN and Hyena for frames, by its names, options and weights: right at any length, and frame by frame.

Edifice (github.com/blasphemetheus/edifice, MIT) is a library of architectures for Elixir; this is about its v0.2.0.
"""

from longstream.edifice import hgrn as hgrn
from longstream.edifice import hyena as hyena
from longstream.edifice.axon import load_axon as load_axon
from longstream.edifice.axon import save_axon as save_axon
