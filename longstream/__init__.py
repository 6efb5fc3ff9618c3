"""Sequence models that train in parallel and stream in constant memory, first-class on a CPU."""

from longstream import edifice as edifice
from longstream import layers as layers
from longstream import models as models
from longstream import ops as ops
from longstream.catalog import build as build
from longstream.catalog import list_models as list_models
from longstream.layers import HGRN as HGRN
from longstream.layers import HGRN2 as HGRN2
from longstream.layers import Hyena as Hyena
from longstream.models import AttentionConfig as AttentionConfig
from longstream.models import Backbone as Backbone
from longstream.models import FeatureModel as FeatureModel
from longstream.models import HGRN2Config as HGRN2Config
from longstream.models import HGRNConfig as HGRNConfig
from longstream.models import HyenaConfig as HyenaConfig
from longstream.models import LanguageModel as LanguageModel
from longstream.models import ModelConfig as ModelConfig
from longstream.models import State as State
from longstream.models import Window as Window
from longstream.stream import generate as generate

__version__ = "0.1.0.dev0"
