"""The instruction of a template: rendered without any row."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagi_lightning.data.p3.render import PromptTemplate
from tagi_lightning.data.p3.rewrite import TemplateProblem
from tagi_lightning.data.p3.templates import TemplateSource


def template(jinja, choices=""):
    return PromptTemplate(TemplateSource("toy", jinja, choices))


def fold(text):
    return " ".join(text.split())


# jinja, answer choices, by hand: the instruction
MASKS = {
    "fields": ("Given {{premise}}, is {{ hypothesis }} so? ||| {{label}}", "", "Given [premise], is [hypothesis] so?"),
    "literal choices": (
        "{{text}} Is it {{answer_choices[1]}} or {{answer_choices[0]}}? ||| {{answer_choices[label]}}",
        "bad ||| good",
        "[text] Is it good or bad?",
    ),
    "all literal choices": (
        "{{text}} One of {{ answer_choices | join(', ') }}? ||| {{answer_choices[label]}}",
        "bad ||| good",
        "[text] One of bad, good?",
    ),
    "choices from fields": (
        "- {{ answer_choices | join('\\n - ') }} ||| {{answer_choices[label]}}",
        "{{a}} ||| {{b}}",
        "- [a] - [b]",
    ),
    "choices from a list": (
        "{{ question | replace('_', answer_choices | join(' or ')) }} Choose: "
        "{{ answer_choices | join(' or ') }} ||| x",
        "{{choices.text | join('|||')}}",
        "[question] Choose: [choices.text]",
    ),
    "literal text and filters": (
        '{{"yes" | capitalize}} or {{"no"}}: {{ a | lower | trim }} ||| x',
        "",
        "Yes or no: [a]",
    ),
    "attributes and entries": (
        '{{info["table"]["head"][n]}} of {{info.of}}, {{items[0]}}, {{items[-1].name}} ||| x',
        "",
        "[info.table.head] of [info.of], [items], [items.name]",
    ),
    "pieces of one field": ("{{ a[0] | capitalize }}{{ a[1:] | trim | trim('.') }}! ||| x", "", "[a]!"),
    "methods": ("{{ a.lower() }}, {{ b.split(' ')[n:] | join(' ') | replace(c, d) }} ||| x", "", "[a], [b]"),
    "first branch with a prompt": (
        "{% if a %} {% elif b %}B: {{b}}{% else %}C{% endif %}. ||| x",
        "",
        "B: [b].",
    ),
    "guard": ("{% if label == 1 %}Say {{a}} ||| {{b}}{% endif %}", "", "Say [a]"),
    "loop": ("{% for s in supports %}- {{s}}\n{% endfor %}Which? ||| x", "", "- [supports] Which?"),
    "loop over a literal": ("{% for s in ['x', 'y'] %}({{s}}){% endfor %} {{a}} ||| x", "", "(x / y) [a]"),
    "lettered loop": (
        "{% for k in range(answers | length) %}{{'. '.join([answer_choices[k], answers[k]])}} {% endfor %} ||| x",
        "A ||| B",
        "A / B. [answers]",
    ),
    "choice of texts": (
        "{% set s = ['Sum up:', 'In short:'] %}{{ s | choice }} {{a}} ||| x",
        "",
        "Sum up: / In short: [a]",
    ),
    "choice of orders": (
        "{% set o = [[0, 1], [1, 0]] | choice %}{{ answer_choices[o[0]] }}, {{ answer_choices[o[1]] }} ||| x",
        "{{a}} ||| {{b}}",
        "[a] / [b], [b] / [a]",
    ),
    "choice of a field": ("About {{ concepts | choice }} ||| x", "", "About [concepts]"),
    "dictionary": ('{{ {"1": a, "2": "none"}[label] }} ||| x', "", "[a] / none"),
    "inline condition": ("{% set p = s[:-1] if s[-1] == '' else s %}{{ p | join(', ') }} ||| x", "", "[s]"),
    "joined": ("{{ 'by ' ~ name ~ '.' }} {{ 1 + 2 }} {{ a + '!' }} {{ n * 2 }} ||| x", "", "by [name]. 3 [a]! [n]"),
}


@pytest.mark.parametrize("name", MASKS)
def test_instructions_written_by_hand(name):
    jinja, choices, expected = MASKS[name]
    assert fold(template(jinja, choices).instruction) == expected


FIELD = st.sampled_from(["alpha", "beta", "gamma"])
SHAPES = ["{{F}}", "{{ F }}", "{{ F | trim }}", "{{F}}{{F[9999:]}}", "{{ [F] | join(', ') }}", "{{ '' ~ F }}"]
PIECE = st.one_of(
    st.text("abc ?.:-\n", min_size=1, max_size=9),
    st.builds(lambda shape, field: " " + shape.replace("F", field) + " ", st.sampled_from(SHAPES), FIELD),
    st.builds(lambda field: "{% set v = " + field + " %}({{v}})", FIELD),
    st.builds(lambda field: "{% for v in [" + field + "] %}<{{v}}>{% endfor %}", FIELD),
)


@settings(deadline=None)
@given(st.lists(PIECE, min_size=1, max_size=8), st.integers(0, 10**9))
def test_a_row_of_nonces_differs_from_the_instruction_by_the_nonces_alone(pieces, number):
    jinja = "Task " + "".join(pieces) + " ||| {{alpha}}"
    nonces = {name: f"{name[::-1]}{number}x" for name in ("alpha", "beta", "gamma")}
    made = template(jinja)
    text = made.fill(nonces, "toy/0").prompt
    for name, nonce in nonces.items():
        assert nonce not in made.instruction
        text = text.replace(nonce, f"[{name}]")
    assert fold(text) == fold(made.instruction)


@given(st.dictionaries(FIELD, st.from_regex(r"[a-z]{5,9}", fullmatch=True), min_size=3, max_size=3))
def test_renaming_fields_renames_their_marks_alone(names):
    if len(set(names.values())) < 3:
        return
    jinja = "{% if alpha %}{{alpha}} {% endif %}{% for b in beta %}{{b.text}} or {% endfor %}{{gamma | choice}} ||| x"
    other = jinja
    expected = template(jinja).instruction
    for name, new in names.items():
        other = other.replace(name, f"{new}_")
        expected = expected.replace(f"[{name}", f"[{new}_")
    assert template(other).instruction == expected


@pytest.mark.parametrize(
    "jinja",
    [
        "{% set x = 'ab' %}" + "{% set x = x + x %}" * 60 + "{{ x }}",
        "{% set x = 'ab' %}" + "{% set x = x ~ x %}" * 60 + "{{ x }}",
        "{% set x = a %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}",
        "{% set x = a %}" + "{% set x = [x, x] %}" * 60 + "{{ x | choice }}",
        "{% set x = 'aa' %}" + "{% set x = x | replace('a', x) %}" * 60 + "{{ x }}",
        "{{ " + " + ".join(["a"] * 20_000) + " }}",
    ],
)
def test_masking_a_malicious_template_stops(jinja):
    with pytest.raises(TemplateProblem):
        template(f"{jinja} {{{{a}}}} ||| x")


def test_large_literals_are_never_computed():
    assert template("{{ 'a' * 10**9 }} {{ 9 ** 9 ** 9 }} {{b}} ||| x").instruction.endswith("[b]")
    assert len(re.findall("/", template("{{ range(1000000000) | choice }} {{b}} ||| x").instruction)) == 31
