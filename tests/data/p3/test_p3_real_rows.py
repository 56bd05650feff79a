"""Real templates on real rows: what a person reading both would write, for each construct they use."""

import json
import os
from pathlib import Path

import pytest

from tagi_lightning.data.p3 import train_datasets
from tagi_lightning.data.p3.lists import test_datasets as all_test_datasets
from tagi_lightning.data.p3.render import PromptTemplate
from tagi_lightning.data.p3.templates import read_templates
from tagi_lightning.data.report import DataReport

LETTERS = "ABCDEFGH"


def lower_first(text):
    return text[0].lower() + text[1:]


def upper_first(text):
    return text[0].upper() + text[1:]


def rte(row):
    prompt = f"{row['premise']} Using only the above description and what you know about the world, is "
    prompt += f'"{row["hypothesis"]}" definitely correct? Yes or no?'
    return prompt, ["Yes", "No"], ["Yes", "No"][row["label"]], f"{row['premise']}\n{row['hypothesis']}"


def copa(row):
    because = "because..." if row["question"] == "cause" else "so..."
    choices = [row["choice1"], row["choice2"]]
    prompt = (
        f"Exercise: choose the most plausible alternative. {row['premise']} {because} - {choices[0]} - {choices[1]}"
    )
    return prompt, choices, choices[row["label"]], "\n".join([row["premise"], row["question"], *choices])


def wsc(row):
    words = " ".join(row["text"].split(" ")[row["span2_index"] :])
    words = words.replace(row["span2_text"], row["span1_text"])
    prompt = f"{row['text']} In other words, {words} True or false?"
    return prompt, ["False", "True"], ["False", "True"][row["label"]], f"{row['text']}\n{words}"


def quartz(row):
    choices, question = row["choices"]["text"], row["question"].strip(".?!")
    either = " or ".join(choices)
    question = question.replace("_____", either) if "_____" in row["question"] else f"{question} {either}"
    prompt = f"{row['para']} {question}?"
    return prompt, choices, choices[row["choices"]["label"].index(row["answerKey"])], None


def quail(row):
    lines = [f"{letter}. {answer}" for letter, answer in zip(LETTERS, row["answers"], strict=False)]
    prompt = " ".join([row["context"], row["question"], *lines])
    gold = LETTERS[row["correct_answer_id"]]
    return prompt, list(LETTERS[:4]), gold, "\n".join([row["context"], row["question"], *lines])


def cos_e(row):
    lines = [f"{letter}. {answer}" for letter, answer in zip(LETTERS, row["choices"], strict=False)]
    prompt = " ".join([row["question"], *lines, "The best answer is"])
    return prompt, list(LETTERS[:5]), LETTERS[row["choices"].index(row["answer"])], None


def qasc(row):
    facts = [upper_first(row[name]).strip().strip(".") for name in ("fact1", "fact2")]
    question = lower_first(row["question"]).strip("?")
    prompt = f"Fact 1: {facts[0]}. Fact 2: {facts[1]}. Given the two facts above, {question}?"
    choices = row["choices"]["text"]
    return prompt, choices, choices[LETTERS.index(row["answerKey"])], None


def wiqa(row):
    steps = row["question_para_step"]
    steps = steps[:-1] if steps[-1] == "" else steps
    prompt = " ".join(["-", "\n- ".join(steps[:-1]), "What might be the last step of the process?"])
    return prompt, [], steps[-1], "\n- ".join(steps[:-1])


def social(row):
    choices = [row["answerA"], row["answerB"], row["answerC"]]
    prompt = f"Context: {row['context']} Question: {row['question']} Which one of these answers best answers the "
    prompt += f"question according to the context? A: {choices[0]} B: {choices[1]} C: {choices[2]}"
    return prompt, ["A", "B", "C"], LETTERS[int(row["label"]) - 1], None


def duorc(row):
    prompt = "I am a movie director and I just received the following movie plot. Could you help me answer this "
    prompt += 'question? If not, let me know by writing "Not answerable". '
    prompt += f"Plot title: {row['title']} Movie plot: {row['plot']} My question: {row['question']}"
    return prompt, [], {"Not answerable"} if row["no_answer"] else set(row["answers"]), None


def hotpot(row):
    return f"FINAL EXAM Question 1. {row['input']}", [], {each["answer"] for each in row["output"]}, row["input"]


def hellaswag(row):
    endings = [f"Ending {number}: {text}" for number, text in enumerate(row["endings"], 1)]
    prompt = f"If a description of a situation begins like this: {row['ctx']}... Then how does it continue? "
    return prompt + " ".join(endings), [f"Ending {n}" for n in (1, 2, 3, 4)], f"Ending {int(row['label']) + 1}", None


def imdb(row):
    return f"{row['text']} This is definitely not a", ["negative", "positive"], None, None


def app(row):
    options = ["Not at all", "No", "Maybe", "Yes", "Definitely"]
    prompt = f'Given this review: "{row["review"]}" Would you recommend this app to a friend? Not at all, No, Maybe, '
    return prompt + "Yes, or Definitely?", options, options[row["star"] - 1], row["review"]


def mrpc(row):
    sentences = f"{row['sentence1']} {row['sentence2']}"
    options = ["not equivalent", "equivalent"]
    prompt = f'Are the following two sentences "equivalent" or "not equivalent"? {sentences}'
    return prompt, options, options[row["label"]], f"{row['sentence1']}\n{row['sentence2']}"


WRITTEN = {
    ("super_glue_rte", "MNLI crowdsource"): rte,
    ("super_glue_copa", "exercise"): copa,
    ("super_glue_wsc.fixed", "in other words"): wsc,
    ("hellaswag", "if_begins_how_continues"): hellaswag,
    ("quartz", "paragraph_question_plain_concat"): quartz,
    ("quail", "no_prompt_id"): quail,
    ("cos_e_v1.11", "question_option_description_id"): cos_e,
    ("qasc", "qa_with_separated_facts_3"): qasc,
    ("wiqa", "what_might_be_the_last_step_of_the_process"): wiqa,
    ("social_i_qa", "Show choices and generate index"): social,
    ("duorc_SelfRC", "movie_director"): duorc,
    ("kilt_tasks_hotpotqa", "final_exam"): hotpot,
    ("imdb", "Negation template for positive and negative"): imdb,
    ("app_reviews", "categorize_rating_using_review"): app,
    ("glue_mrpc", "equivalent"): mrpc,
}


def fold(text):
    return " ".join(text.split())


def stripped(text):
    return "\n".join(dict.fromkeys(fold(line) for line in text.split("\n") if line.strip()))


@pytest.mark.realdata
@pytest.mark.parametrize(("dataset", "template"), WRITTEN)
def test_real_rows_give_the_text_written_by_hand(dataset, template):
    root = Path(os.environ.get("TAGI_DATA", "nowhere"))
    if not (root / "p3").is_dir():
        pytest.skip("TAGI_DATA names no folder with p3/ and p3_templates/")
    known = next(each for each in (*train_datasets(), *all_test_datasets()) if each.name == dataset)
    report = DataReport("templates")
    path = root / "p3_templates" / known.template_folder / "templates.yaml"
    made = PromptTemplate(read_templates(path, report)[template])
    folder = next(root / "p3" / name for name in known.row_folders if (root / "p3" / name).is_dir())
    with next(iter(sorted(folder.glob("*.jsonl")))).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(25), strict=False)]
    for number, row in enumerate(rows):
        prompt, choices, target, fields = WRITTEN[dataset, template](row)
        found = made.fill(row, f"{dataset}/{number}")
        assert fold(found.prompt) == fold(prompt)
        assert list(found.choices) == [choice.strip() for choice in choices]
        if isinstance(target, set):
            assert set(found.targets) == {each.strip() for each in target}
        elif target is not None:
            assert found.targets == (target.strip(),)
            assert found.gold == (choices.index(target) if choices else None)
        else:
            assert found.gold is None
        if fields is not None:
            assert stripped(found.fields) == stripped(fields)
