"""Reading models of the transformers library: the one place where it is imported."""

from moec.when_imported import when_imported

when_imported("transformers.utils.import_utils", "moec.huggingface.reading.exported_names")
