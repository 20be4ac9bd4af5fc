"""A prompt of two parts that recombine: one of the language, one of the task (Vu et al. 2022, "Overcoming Catastrophic Forgetting in Zero-Shot Cross-Lingual Generation", S287).

[P_language; P_task; E(x)]    P_language: (languages, language_length, width)  P_task: (tasks, task_length, width)
trained: (language_length + task_length) * width (and as much for each further language or task of its own part)
Not an identity at step 0; not a weight change: it cannot merge.

Every row says its language and its task, `--attribute language --attribute task`, which `languages` and `tasks` declare. Languages are
learned from unlabelled texts (`luthier mix` makes such rows), the task from one language; at prediction any language goes with
any task, also where no row had both: `luthier predict DIR --control sw --control summary`. Without `languages` or `tasks` that part is
one for all rows.

Differs: AdamW at the rate of this row instead of Adafactor; each part begins with rows of the vocabulary.
"""

from __future__ import annotations

from pydantic import PositiveInt

from luthier.host.part import Free, Method, Start, method
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.sources.by_label import ByLabel
from luthier.starts.vocabulary import Vocabulary


@method("factored_prompt", rate=1e-1)
class FactoredPrompt(Method):
    languages: str = ""  # the languages, labels of the first attribute: "en, sw"
    tasks: str = ""  # the tasks, labels of the second attribute: "summary, spans"
    language_length: PositiveInt = 10  # tokens of a language's part
    task_length: PositiveInt = 10  # tokens of a task's part
    start: Start = Vocabulary()  # rows of the vocabulary, or chosen ones

    def parts(self):
        of = ((self.language_length, self.languages), (self.task_length, self.tasks))
        return tuple(
            PromptTuning(
                length=n, start=self.start, source=ByLabel(labels=labels, attribute=i) if labels else Free()
            )
            for i, (n, labels) in enumerate(of)
        )
