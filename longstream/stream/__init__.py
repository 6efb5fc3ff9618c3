"""Streams: a model's step compiled once and run by one call, with states that are kept, taken back and moved."""

from longstream.stream.accuracy import WeightsError as WeightsError
from longstream.stream.accuracy import WeightsReport as WeightsReport
from longstream.stream.accuracy import weights_report as weights_report
from longstream.stream.compile import CannotCompile as CannotCompile
from longstream.stream.compile import CompiledStep as CompiledStep
from longstream.stream.compile import compile_step as compile_step
from longstream.stream.kept import forget_step as forget_step
from longstream.stream.kept import kept_step as kept_step
from longstream.stream.prefix import PrefixCache as PrefixCache
from longstream.stream.stream import Stream as Stream
from longstream.stream.stream import unbounded as unbounded
from longstream.stream.text import TextEngine as TextEngine
from longstream.stream.text import generate as generate
from longstream.stream.window import WindowStream as WindowStream
from longstream.stream.window import sliding_window as sliding_window
