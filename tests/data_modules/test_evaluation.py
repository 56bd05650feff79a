import pytest
import torch

from data_modules import SyntheticDataModule
from data_modules.evaluation import ControlInstructions, EvaluationData
from tagi_lightning.data.synthetic import SyntheticConfig

CONFIG = SyntheticConfig(train_instances=2, test_instances=2, documents_per_task=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controls") / "data"
    data = SyntheticDataModule(str(folder), synthetic=CONFIG, eval_batch_size=16, with_prompt=True, setting="def+2pos")
    data.prepare_data()
    return data


def rows(tokens):
    return [ids[mask.bool()].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]


def of_loader(loader):
    """Returns the instruction and the examples of every task."""
    instructions, examples = {}, {}
    for batch in loader:
        instructions |= dict(zip(batch.tasks, rows(batch.instruction), strict=True))
        for place, row in enumerate(batch.task_index.tolist()):
            examples[batch.tasks[row], batch.ids[place]] = (rows(batch.input)[place], batch.references[place])
    return instructions, examples


@pytest.mark.parametrize("split", ["train", "test"])
def test_all_tasks_of_a_split_come_in_order_in_their_first_phrasing(data, split):
    batches = list(ControlInstructions(EvaluationData(data)).of_split(split))
    tasks = data.tasks[split].tasks
    assert [name for batch in batches for name in batch.tasks] == [task.name for task in tasks]
    found = [row for batch in batches for row in rows(batch.instruction)]
    assert found == [data.assembler.instruction(task.definitions[0], task.demonstrations) for task in tasks]
    assert all(len(batch) == 0 and len(batch.tasks) <= 16 for batch in batches)
    known = torch.cat([batch.category for batch in batches])
    expected = [data.categories.index(task.category) for task in tasks]
    assert known.tolist() == expected


def test_the_wrong_instructions_are_those_of_the_system_with_another_tasks_instruction(data):
    wrong, _ = of_loader(EvaluationData(data).wrong_instruction())
    names = list(wrong)[:5]
    assert rows(ControlInstructions(EvaluationData(data)).wrong(names)) == [wrong[name] for name in names]


def test_paraphrased_tasks_differ_in_the_definition_alone(data):
    right, examples = of_loader(data.test_dataloader())
    other, same = of_loader(EvaluationData(data).paraphrased())
    assert examples == same
    for task in data.tasks["test"].tasks:
        assert right[task.name] != other[task.name]
        assert other[task.name] == data.assembler.instruction(task.definitions[1], task.demonstrations)
    by_task = {batch.tasks: batch for batch in data.test_dataloader()}
    for batch in EvaluationData(data).paraphrased():
        assert not torch.equal(batch.prompt.ids, by_task[batch.tasks].prompt.ids)
