"""Models: a backbone for every mixer, heads, their state, and generation."""

from longstream.models import _trees as _trees
from longstream.models.backbone import Backbone as Backbone
from longstream.models.backbone import Block as Block
from longstream.models.config import AttentionConfig as AttentionConfig
from longstream.models.config import HGRN2Config as HGRN2Config
from longstream.models.config import HGRNConfig as HGRNConfig
from longstream.models.config import HyenaConfig as HyenaConfig
from longstream.models.config import ModelConfig as ModelConfig
from longstream.models.decode import distill as distill
from longstream.models.decode import set_decode as set_decode
from longstream.models.features import FeatureModel as FeatureModel
from longstream.models.generate import generate as generate
from longstream.models.generate import stream as stream
from longstream.models.heads import LanguageModel as LanguageModel
from longstream.models.heads import next_token_loss as next_token_loss
from longstream.models.history import StateHistory as StateHistory
from longstream.models.parameters import count_parameters as count_parameters
from longstream.models.parameters import decays as decays
from longstream.models.parameters import parameter_groups as parameter_groups
from longstream.models.presets import hyena_dna as hyena_dna
from longstream.models.state import State as State
from longstream.models.window import Window as Window
from longstream.models.window import WindowState as WindowState
