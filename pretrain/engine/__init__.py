"""The engine: all that a run needs of what steps its model. The only place of the program that knows DeepSpeed's."""

from pretrain.engine.base import Engine as Engine
from pretrain.engine.base import fill_up as fill_up
from pretrain.engine.deepspeed import PipelineEngine as PipelineEngine
from pretrain.engine.deepspeed import PlainEngine as PlainEngine
