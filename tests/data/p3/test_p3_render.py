"""Every construct that T0's templates use, on small rows, with the text written by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagi_lightning.data.p3.limits import RowProblem
from tagi_lightning.data.p3.render import PromptTemplate
from tagi_lightning.data.p3.rewrite import TemplateProblem
from tagi_lightning.data.p3.templates import TemplateSource


def template(jinja, choices=""):
    return PromptTemplate(TemplateSource("toy", jinja, choices))


def fold(text):
    return " ".join(text.split())


def fill(jinja, row, choices="", seed=0):
    return template(jinja, choices).fill(row, "toy/train/0", seed)


RTE = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0}
COPA = {"premise": "He ran.", "choice1": "He was late.", "choice2": "He slept.", "question": "cause", "label": 0}
QUAIL = {"context": "A day.", "question": "When?", "answers": ["dawn", "noon"], "correct_answer_id": 1}
QUARTZ = {
    "para": "Heat melts ice.",
    "question": "With heat, ice will _____.",
    "choices": {"text": ["melt", "grow"], "label": ["A", "B"]},
    "answerKey": "A",
}

# jinja, answer choices, row, then by hand: prompt, fields, targets, choices, gold
CONSTRUCTS = {
    "literal choices": (
        '{{premise}} Does it follow that "{{hypothesis}}"? ||| '
        "{% if label != -1 %}{{ answer_choices[label] }}{% endif %}",
        "Yes ||| No",
        RTE,
        ('It rains. Does it follow that "It is wet."?', "It rains.\nIt is wet.", ["Yes"], ["Yes", "No"], 0),
    ),
    "literal text printed": (
        'Is "{{hypothesis}}" {{"true"}} or {{"false"}}? ||| {{answer_choices[label]}}',
        "True ||| False",
        RTE,
        ('Is "It is wet." true or false?', "It is wet.", ["True"], ["True", "False"], 0),
    ),
    "choices from fields": (
        "{{premise}} Why?\n- {{answer_choices | join('\\n- ')}} ||| {{answer_choices[label]}}",
        "{{choice1}} ||| {{choice2}}",
        COPA,
        (
            "He ran. Why?\n- He was late.\n- He slept.",
            "He ran.\nHe was late.\n- He slept.",
            ["He was late."],
            ["He was late.", "He slept."],
            0,
        ),
    ),
    "choices from a list, a condition, nested filters": (
        "{{para}} {% if '_____' in question %}"
        "{{ question | trim('.?!') | replace('_____', answer_choices | join(' or ')) }}{{ '?' }}"
        "{% else %}{{ question }}{% endif %} ||| {{answer_choices[choices.label.index(answerKey)]}}",
        "{{choices.text | join('|||')}}",
        QUARTZ,
        (
            "Heat melts ice. With heat, ice will melt or grow?",
            "Heat melts ice.\nWith heat, ice will melt or grow",
            ["melt"],
            ["melt", "grow"],
            0,
        ),
    ),
    "a condition within the prompt": (
        "{{premise}} {% if question == 'cause' %} because {% else %} so {% endif %} ||| {{answer_choices[label]}}",
        "{{choice1}} ||| {{choice2}}",
        COPA,
        ("He ran. because", "He ran.\ncause", ["He was late."], ["He was late.", "He slept."], 0),
    ),
    "elif and else, a variable": (
        "{% set names = [choice1, choice2] %}{% if label == 5 %}{{premise}}{% elif label == 0 %}{{names[0]}}"
        "{% else %}{{names[1]}}{% endif %} is why? ||| {{premise}}",
        "",
        COPA,
        ("He was late. is why?", "0\nHe was late.", ["He ran."], [], None),
    ),
    "a loop with a method": (
        "{{context}} {{question}}\n{% for k in range(answers | length) %}\n"
        "{{'. '.join([answer_choices[k], answers[k]])}}\n{% endfor %} ||| {{ answer_choices[correct_answer_id] }}",
        "A ||| B",
        QUAIL,
        ("A day. When? A. dawn B. noon", "A day.\nWhen?\nA. dawn\nB. noon", ["B"], ["A", "B"], 1),
    ),
    "a loop among the targets": (
        "{{context}} ||| {% for a in answers %} "
        "{% if a == 'noon' %}{{ answer_choices[loop.index - 1] }}{% endif %}{% endfor %}",
        "{{answers | join('|||')}}",
        QUAIL,
        ("A day.", "A day.", ["noon"], ["dawn", "noon"], 1),
    ),
    "slices, capitals and map": (
        "{{ question[0] | lower }}{{ question[1:] }} {{ answers | map('capitalize') | list | join(', ') }} "
        "||| {{ answers[-1] }}",
        "",
        QUAIL,
        ("when? Dawn, Noon", "when?\nDawn, Noon", ["noon"], [], None),
    ),
    "a label as text, arithmetic": (
        "{{context}} ||| {{ answer_choices[label | int - 1] }}",
        "{{a}} ||| {{b}}",
        {"context": "c", "a": "one", "b": "two", "label": "2"},
        ("c", "c", ["two"], ["one", "two"], 1),
    ),
    "a dictionary": (
        'Is it "{{ {"1": a, "2": b}[label] }}"? ||| {{ {"1": "A", "2": "B"}[label] }}',
        "A ||| B",
        {"a": "one", "b": "two", "label": "2"},
        ('Is it "two"?', "two", ["B"], ["A", "B"], 1),
    ),
    "an inline condition": (
        "{% set steps = s[:-1] if s[-1] == '' else s %}{{ steps[:-1] | join(' > ') }} ||| {{ steps | last }}",
        "",
        {"s": ["wash", "dry", "fold", ""]},
        ("wash > dry", "wash > dry", ["fold"], [], None),
    ),
    "a guard": (
        "{% if label == 1 %}Say it again: {{a}} ||| {{b}}{% endif %}",
        "",
        {"a": "hello", "b": "hi", "label": 1},
        ("Say it again: hello", "hello", ["hi"], [], None),
    ),
    "attributes, reject, split": (
        "{% set parts = doc.split('; ') | reject('equalto', '') | list %}"
        "{% for p in parts %}[{{p}}]{% endfor %} ||| {{info.by}}",
        "",
        {"doc": "x; ; y", "info": {"by": "me"}},
        ("[x][y]", "x\ny", ["me"], [], None),
    ),
    "targets written one after another": (
        "{{a}} ||| {{b}} ||| {{c}}",
        "",
        {"a": "one", "b": "two", "c": "three"},
        ("one", "one", ["two", "three"], [], None),
    ),
    "the separator within a field": (
        "{{a}} ||| {{answer_choices[0]}}",
        "{{a}} ||| {{b}}",
        {"a": "x ||| y", "b": "z"},
        ("x ||| y", "x ||| y", ["x ||| y"], ["x ||| y", "z"], 0),
    ),
}


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_constructs_give_the_text_written_by_hand(name):
    jinja, choices, row, (prompt, fields, targets, options, gold) = CONSTRUCTS[name]
    before = repr(row)
    found = fill(jinja, row, choices)
    assert fold(found.prompt) == fold(prompt)
    assert found.fields.split("\n") == fields.split("\n")
    assert (list(found.targets), list(found.choices), found.gold) == (targets, options, gold)
    assert repr(row) == before


def test_a_choice_depends_on_seed_and_row_alone():
    made = template("{% set s = ['a', 'b', 'c', 'd'] %}{{ s | choice }} {{x}} ||| {{y}}")
    row = {"x": 1, "y": "z"}
    texts = {(seed, n): made.fill(row, f"toy/{n}", seed).prompt for seed in range(4) for n in range(8)}
    assert texts == {(seed, n): made.fill(row, f"toy/{n}", seed).prompt for seed in range(4) for n in range(8)}
    assert set(texts.values()) == {"a 1", "b 1", "c 1", "d 1"}
    assert {made.fill(row, "toy/0").fields} == {"1"}


def test_every_target_of_a_choice_is_a_reference_the_drawn_one_first():
    made = template("{{q}} {{ hints | choice }} ||| {{ answers.text | choice }}")
    row = {"q": "why", "hints": ["h1", "h2"], "answers": {"text": ["one", "two", "two", "three"]}}
    found = [made.fill(row, f"toy/{n}") for n in range(20)]
    assert {each.targets[0] for each in found} == {"one", "two", "three"}
    assert all(sorted(each.targets) == ["one", "three", "two"] for each in found)
    assert {each.prompt for each in found} == {"why h1", "why h2"}


CHOSEN = "{{a}} ||| {{ answer_choices[label] }}"

# jinja, answer choices, row, what the message says
PROBLEMS = {
    "undefined field": ("{{a}} {{nothing.at_all}} ||| b", "", {"nothing": {}}, "undefined field"),
    "absent from this row": ("{{a}} ||| {{b}}", "", {"a": "x"}, "undefined field .*'b' is undefined"),
    "null field": ("{{a}} ||| {{b}}", "", {"a": None, "b": "x"}, "null"),
    "null field decides": ("{{a}} ||| {% if b %}yes{% else %}no{% endif %}", "", {"a": "x", "b": None}, "null"),
    "empty target": ("{{a}} ||| {{b}}", "", {"a": "x", "b": " "}, "empty target"),
    "empty prompt": ("{{a}} ||| {{b}}", "", {"a": " ", "b": "x"}, "empty prompt"),
    "left out": ("{% if a == 1 %}{{a}} ||| b{% endif %}", "", {"a": 2}, "leaves out"),
    "separator not reached": ("{{a}}{% if a == 1 %} ||| b{% endif %}", "", {"a": 2}, "rendered text without"),
    "label -1": (CHOSEN, "No ||| Yes", {"a": "x", "label": -1}, "row without label"),
    "label empty": (CHOSEN.replace("label", "label | int"), "No ||| Yes", {"a": "x", "label": ""}, "without label"),
    "label 0 counted from 1": (CHOSEN.replace("label", "label - 1"), "No ||| Yes", {"a": "x", "label": 0}, "no index"),
    "label too large": (CHOSEN, "No ||| Yes", {"a": "x", "label": 2}, "no index"),
    "duplicate choices": (CHOSEN, "{{a}} ||| {{b}}", {"a": "x", "b": "x", "label": 0}, "duplicate answer choices"),
    "empty choice": (CHOSEN, "{{a}} ||| {{b}}", {"a": "x", "b": "", "label": 0}, "empty answer choice"),
    "two right choices": ("{{a}} ||| Yes ||| No", "No ||| Yes", {"a": "x"}, "more than one target"),
    "no options": ("{{a}} ||| {{ b | choice }}", "", {"a": "x", "b": []}, "empty list"),
    "wrong type": ("{{ a[1:] }} ||| b", "", {"a": 3}, "undefined field|cannot be rendered"),
    "method printed": ("{{ a.lower }} ||| b", "", {"a": "x"}, "no text"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_unusable_rows_are_told_apart(name):
    jinja, choices, row, message = PROBLEMS[name]
    with pytest.raises(RowProblem, match=message):
        fill(jinja, row, choices)


def test_a_target_that_is_no_choice_has_no_gold_index():
    found = fill("{{a}} ||| {{b}}", {"a": "x", "b": "maybe"}, "No ||| Yes")
    assert (found.choices, found.gold, found.targets) == (("No", "Yes"), None, ("maybe",))


@given(st.integers(-3, 5), st.lists(st.sampled_from(["a", "b", "c", " a"]), min_size=1, max_size=4))
def test_gold_is_never_wrong(label, options):
    row = {"x": "text", "options": options, "label": label}
    try:
        found = fill("{{x}} ||| {{answer_choices[label]}}", row, "{{options | join('|||')}}")
    except RowProblem:
        assert not 0 <= label < len(options) or len({each.strip() for each in options}) < len(options)
    else:
        assert found.gold == label
        assert found.choices[found.gold] == options[label].strip() == found.targets[0]


@given(st.text(), st.text())
def test_any_text_passes_through_unchanged(first, second):
    row = {"a": first, "b": second}
    kept = {key: "".join(c for c in text if not "\ufdd0" <= c <= "\ufdd3").strip() for key, text in row.items()}
    if not all(kept.values()):
        return
    found = fill("<{{a}}> ||| {{b}}", row)
    assert found.prompt[1:-1].strip() == kept["a"]
    assert found.targets == (kept["b"],)
    assert found.fields == kept["a"]


def test_missing_fields_are_those_a_template_cannot_do_without():
    made = template(
        "{{a}}{% if hint %}{{hint}}{% endif %}{% if b is defined %}{{b}}{% endif %}{{ c | default('') }} "
        "||| {% if d %}{{ answer_choices[e] }}{% else %}no{% endif %}",
        "{{f}} ||| no",
    )
    assert made.fields == {"a", "hint", "b", "c", "d", "e", "f"}
    assert made.missing([]) == ["a", "d", "e", "f"]
    assert made.missing(["a", "d", "e", "f"]) == []
    found = made.fill({"a": "text", "d": True, "e": 0, "f": "yes"}, "toy/0")
    assert (found.prompt, found.fields, found.gold) == ("text", "text", 0)


def test_what_only_a_condition_reads_is_told_unless_it_gives_the_target_away():
    row = {"a": "x", "mood": "glad", "label": 1}
    jinja = "{% if TEST %}{{a}}!{% else %}{{a}}{% endif %} ||| {{answer_choices[label]}}"
    found = {
        test: fill(jinja.replace("TEST", test), row, "n ||| y").fields for test in ("mood == 'glad'", "label == 1")
    }
    assert found == {"mood == 'glad'": "glad\nx", "label == 1": "x"}


UNUSABLE = {
    "syntax error": ("{{ a ||| b", ""),
    "unknown filter": ("{{ a | center(9) }} ||| b", ""),
    "no separator": ("{{ a }} b", ""),
    "no instruction": ("||| {{ a }}", ""),
    "choices without any": ("{{ a }} ||| {{ answer_choices[0] }}", ""),
    "choices from themselves": ("{{ a }} ||| b", "{{ answer_choices[0] }} ||| b"),
    "macro": ("{% macro m() %}x{% endmacro %}{{ m() }} ||| b", ""),
    "include": ("{% include 'other' %} ||| b", ""),
    "recursive loop": ("{% for x in a recursive %}{{ loop(x) }}{% endfor %} ||| b", ""),
    "nested too deeply": ("{{ " + "(" * 3000 + "a" + ")" * 3000 + " }} ||| b", ""),
    "too many blocks": ("{% for x in a %}" * 30 + "{% endfor %}" * 30 + " {{a}} ||| b", ""),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_templates_are_refused_before_any_row(name):
    with pytest.raises(TemplateProblem):
        template(*UNUSABLE[name])
