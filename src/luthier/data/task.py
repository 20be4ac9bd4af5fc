"""Task: what is predicted from what. It travels in an adaptation's card, with the labels' meaning."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer, model_validator

from luthier.data.write import quote
from luthier.errors import DataError

Kind = Literal["classification", "multilabel", "regression", "text2text", "tagging", "retrieval"]
Modality = Literal["text", "pair", "image", "array", "words"]

KINDS: tuple[Kind, ...] = ("classification", "multilabel", "regression", "text2text", "tagging", "retrieval")
METRICS: dict[str, tuple[str, ...]] = {  # the first is the headline unless another is asked for
    "classification": ("accuracy", "macro_f1", "log_loss", "ece"),
    "multilabel": ("micro_f1", "macro_f1", "accuracy", "log_loss"),
    "regression": ("pearson", "spearman", "rmse"),
    "text2text": ("rougeL", "bleu", "exact_match"),
    "tagging": ("entity_f1", "accuracy", "macro_f1"),  # entity_f1 of tags that mark entities only
    "retrieval": ("mrr", "recall@1", "recall@5", "recall@10"),
}
LOWER_IS_BETTER = ("log_loss", "ece", "rmse")


def metrics_for(kind: str, labels: Any) -> tuple[str, ...]:
    """The metrics of a kind, the headline first; those of entities need tags that mark them."""
    from luthier.data.entities import marks_entities

    if kind == "tagging" and not marks_entities([str(label) for label in labels]):
        return tuple(name for name in METRICS[kind] if name != "entity_f1")
    return METRICS[kind]  # type: ignore[index]


class Task(BaseModel):
    """What is predicted from what.

    kind, modality  the shape of the problem; labels: index -> name, for classification, multilabel
                    and tagging (the tags) only
    input, label    the columns' names as they were read (of retrieval the query's and the document's); two inputs make a pair; an array made of several
                    numeric columns keeps their names in order, joined by commas
    history         the column of histories, lists of texts that a method may read beside the input; empty: none
    metric          the headline metric; empty: the kind's first in METRICS; accuracy for tags that mark no entities
    attributes      the columns of labels that an adaptation is told with every row (`Split.attributes`)
    covariates      the columns of numbers that it is told, or measures of images (`Split.covariates`, `luthier.data.covariates`)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    modality: Modality
    labels: tuple[str, ...] = ()
    input: str | tuple[str, str]
    label: str
    history: str = ""
    metric: str = ""
    attributes: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _said(self, whole: Any) -> dict[str, Any]:
        """A task without attributes, covariates or histories is written as it was before there were any: cards and digests stay what they are."""
        return {k: v for k, v in whole(self).items() if k not in ("attributes", "covariates", "history") or v}

    @model_validator(mode="before")
    @classmethod
    def _headline(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("metric") and values.get("kind") in METRICS:
            return {**values, "metric": metrics_for(values["kind"], values.get("labels") or ())[0]}
        return values

    @model_validator(mode="after")
    def _fits(self) -> "Task":
        if self.metric not in (known := metrics_for(self.kind, self.labels)):
            raise ValueError(f"no metric {self.metric!r} for {self.kind}: {', '.join(known)}")
        if (self.kind == "tagging") != (self.modality == "words"):
            raise ValueError("tagging, and only tagging, reads words")
        if self.kind in ("classification", "multilabel", "tagging"):
            if len(set(self.labels)) != len(self.labels):
                raise ValueError("labels repeat")
            if len(self.labels) < (1 if self.kind == "multilabel" else 2):
                raise ValueError(f"{self.kind} with {len(self.labels)} labels")
        elif self.labels:
            raise ValueError(f"{self.kind} has no labels")
        if self.kind == "retrieval" and self.modality != "text":
            raise ValueError("retrieval finds a text by a text")
        if (self.modality == "pair") != isinstance(self.input, tuple):
            raise ValueError("a pair, and only a pair, has two inputs")
        return self

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the headline metric is better."""
        return self.metric not in LOWER_IS_BETTER

    @classmethod
    def from_card(cls, value: Any) -> "Task":
        """The task in a card's JSON. Raises DataError, in one line, where the JSON is no task."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "task"
            raise DataError(f"Not a task: {quote(where)}: {quote(first['msg'], 200)}") from None
