"""Pure tensor functions on (B, T, ...): no modules, no configuration, no global state."""

from longstream.ops._dispatch import available_backends as available_backends
from longstream.ops._dispatch import op_names as op_names
from longstream.ops._native import native_kernels as native_kernels
from longstream.ops.gated_scan import gated_scan as gated_scan
from longstream.ops.gates import LowerBound as LowerBound
from longstream.ops.gates import forget_gate as forget_gate
from longstream.ops.gates import lower_bounds as lower_bounds
from longstream.ops.gla import gla as gla
from longstream.ops.long_conv import LongConvFilters as LongConvFilters
from longstream.ops.long_conv import LongConvState as LongConvState
from longstream.ops.long_conv import long_conv as long_conv
from longstream.ops.long_conv import long_conv_two_sided as long_conv_two_sided
from longstream.ops.short_conv import short_conv as short_conv
