"""How an engine folder is laid out, so that software which already exists loads it as it is.

`plain`: the engine and the files that belong to the model (config.json, tokenizer). ONNX Runtime, optimum and
sentence-transformers read it. `genai`: the same and `genai_config.json`, for onnxruntime-genai. `triton`: a model
repository of Triton Inference Server, in which the plain folder is version 1 of the model. `kserve`: the same, and an
InferenceService that has KServe start that server.
"""

from moec.layouts.arrange import LAYOUTS, arrange, choose, holds_engine, model_folder
from moec.layouts.facts import ModelFacts

__all__ = ["LAYOUTS", "ModelFacts", "arrange", "choose", "holds_engine", "model_folder"]
