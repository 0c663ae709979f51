"""Names of other projects' YAML files that this version knows and does not have yet.

They are refused by name, at their line, instead of being called unknown. A name leaves this table
when an entry point in `automodel.aliases` takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping

# Foreign name -> the kind of target it will be.
PENDING: Mapping[str, str] = {
    "nemo_automodel.NeMoAutoModelForImageTextToText.from_pretrained": "models",
    "nemo_automodel.NeMoAutoModelForImageTextToText.from_config": "models",
    "nemo_automodel.components.datasets.llm.hellaswag.HellaSwag": "datasets",
}
