"""Layers that take plain arguments: mixers, norms and MLPs."""

from longstream.layers.attention import AttentionState as AttentionState
from longstream.layers.attention import SlidingWindowAttention as SlidingWindowAttention
from longstream.layers.hgrn import HGRN as HGRN
from longstream.layers.hgrn import HGRNState as HGRNState
from longstream.layers.hgrn2 import HGRN2 as HGRN2
from longstream.layers.hgrn2 import HGRN2State as HGRN2State
from longstream.layers.hyena import Hyena as Hyena
from longstream.layers.hyena_filter import HyenaFilter as HyenaFilter
from longstream.layers.hyena_state import HyenaState as HyenaState
from longstream.layers.mlp import MLPS as MLPS
from longstream.layers.mlp import BilinearMLP as BilinearMLP
from longstream.layers.mlp import GeluMLP as GeluMLP
from longstream.layers.mlp import SwiGLU as SwiGLU
from longstream.layers.mlp import make_mlp as make_mlp
from longstream.layers.modal import DistillReport as DistillReport
from longstream.layers.modal import ModalFilter as ModalFilter
from longstream.layers.norm import RMSNorm as RMSNorm
from longstream.layers.norm import make_norm as make_norm
from longstream.layers.short_conv import ShortConv as ShortConv
