"""No template executes code, loops without end or builds a huge text."""

import time

import pytest

from tagi_lightning.data.p3.limits import MAX_CHARACTERS, RowProblem
from tagi_lightning.data.p3.render import PromptTemplate
from tagi_lightning.data.p3.rewrite import TemplateProblem
from tagi_lightning.data.p3.templates import TemplateSource

ROW = {"a": "text", "items": [1, 2, 3], "names": {"k": "v"}, "n": 2}

INTERNALS = [
    "{{ a.__class__ }}",
    "{{ a['__class__'] }}",
    "{{ a['__cla' ~ 'ss__'] }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ a | attr('__class__') }}",
    "{{ [a] | map(attribute='__class__') | list }}",
    "{{ (a.split).__self__ }}",
    "{{ a.format }}",
    "{{ '{0.__class__}'.format(a) }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum(1000) }}",
    "{{ self._TemplateReference__context }}",
    "{{ range.__doc__ }}",
    "{{ items.append(4) }}",
    "{{ names.update({'x': 1}) }}",
    "{{ namespace(x=1).x }}",
    "{% for x in items %}{{ loop.__init__ }}{% endfor %}",
    "{% import 'os' as os %}{{ os }}",
    "{% set x = a.encode %}{{ x() }}",
]

HUGE = [
    "{{ 'a' * 10**9 }}",
    "{{ a * 1000000000 }}",
    "{{ [1] * 1000000000 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ 2 ** 1000000000 }}",
    "{% set n = 9 ** 60 %}" + "{% set n = n * n %}" * 40 + "{{ n }}",
    "{% set x = 'ab' %}" + "{% set x = x + x %}" * 40 + "{{ x }}",
    "{% set x = 'ab' %}" + "{% set x = x ~ x %}" * 40 + "{{ x }}",
    "{% set x = a %}" + "{% set x = [x, x] %}" * 40 + "{{ x }}",
    "{% set x = a %}" + "{% set x = [x, x] %}" * 40 + "{{ x == x }}",
    "{% set x = a %}" + "{% set x = (x, x) %}" * 40 + "{{ x | string }}",
    "{% set x = a %}" + "{% set x = {'l': x, 'r': x} %}" * 40 + "{{ x }}",
    "{% set x = a %}" + "{% set x = [x, x, x, x] | join %}" * 40 + "{{ x }}",
    "{% set x = a %}" + "{% set x = x.join([x, x, x]) %}" * 40 + "{{ x }}",
    "{% set x = 'aaaaaaaa' %}" + "{% set x = x | replace('a', x) %}" * 40 + "{{ x }}",
    "{% set x = 'aaaaaaaa' %}" + "{% set x = x.replace('a', x) %}" * 40 + "{{ x }}",
    "{{ '%1000000000d' % n }}",
    "{{ 1.5 | round(1000000000) }}" + "{{ a * 9999999 }}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}{{ a }}",
    "{% for i in range(1000000000) %}{% endfor %}{{ a }}",
    "{% for i in range(1000) %}{% set x = range(100000) | list %}{% endfor %}{{ a }}",
    "{% for i in range(100000) %}{% if range(100000) | map('string') | list %}{% endif %}{% endfor %}{{ a }}",
    "{% for i in range(90000) %}a rather long text for each of so many steps{% endfor %}{{ a }}",
]


def refused(jinja):
    with pytest.raises((TemplateProblem, RowProblem)) as caught:
        PromptTemplate(TemplateSource("toy", f"{{{{a}}}} {jinja} ||| target")).fill(ROW, "toy/0")
    return caught.value


@pytest.mark.parametrize("jinja", INTERNALS)
def test_nothing_but_text_operations_can_be_reached(jinja):
    before = repr(ROW)
    error = refused(jinja)
    assert not isinstance(error, RowProblem) or "undefined" in str(error) or "which is no text" in str(error)
    assert repr(ROW) == before


@pytest.mark.parametrize("jinja", HUGE)
def test_what_costs_too_much_is_stopped_early(jinja):
    start = time.perf_counter()
    refused(jinja)
    assert time.perf_counter() - start < 3


def test_a_huge_row_is_stopped_and_others_are_not():
    made = PromptTemplate(TemplateSource("toy", "{{a}} ||| {{n}}"))
    with pytest.raises(RowProblem, match="rendering stopped: more than"):
        made.fill({**ROW, "a": "x" * (MAX_CHARACTERS + 1)}, "toy/0")
    assert made.fill({**ROW, "a": "x" * (MAX_CHARACTERS // 2)}, "toy/1").targets == ("2",)


def test_an_unused_huge_field_does_not_matter():
    made = PromptTemplate(TemplateSource("toy", "{{a}} ||| {{n}}"))
    assert made.fill({**ROW, "unused": "x" * (MAX_CHARACTERS + 1)}, "toy/0").prompt == "text"


def test_rows_nested_without_end_are_skipped():
    deep = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RowProblem, match="nested too deeply"):
        PromptTemplate(TemplateSource("toy", "{{a}} {{items[0]}} ||| {{n}}")).fill({**ROW, "items": deep}, "toy/0")
