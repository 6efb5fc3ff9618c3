"""Layers that take plain arguments: a mixer, norms and an MLP."""

from longstream.layers.hgrn2 import HGRN2 as HGRN2
from longstream.layers.hgrn2 import HGRN2State as HGRN2State
from longstream.layers.mlp import SwiGLU as SwiGLU
from longstream.layers.norm import RMSNorm as RMSNorm
from longstream.layers.norm import make_norm as make_norm
from longstream.layers.short_conv import ShortConv as ShortConv
