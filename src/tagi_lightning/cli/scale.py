"""`tagi scale`: parameters, operations, memory and time of every stage at any size, told from shapes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from tagi_lightning.cli.command import options_of

DOCUMENT = """\
# Scale

What each stage needs. Made by `tagi scale --markdown true > docs/scale.md`; for another size, number of GPUs or storage
ask `tagi scale --size xl --devices 4 --strategy ddp --quantization int8`.

Nothing here was run on a GPU. Parameters and operations are counted, and memory is added up, on tensors without
storage that go through each stage's own models, the losses in their plain form: exact by shape, blind to the
allocator. Batches and ranks are those of `experiments/`, lengths are means of Super-NaturalInstructions' test tasks
(instruction {instruction}, input 109, output 14 tokens; `pretrain` reads 1024 tokens of text, `pretrain-backbone`
512). The longest batch of a run needs more: allow for several times the activations of `teachers` and `distill`,
whose inputs reach 1024 tokens. Unless a table says otherwise, frozen weights are stored in bfloat16
(`--backbone.dtype=bfloat16`), the trainer runs bf16-mixed, trained weights, their gradients and the optimizer's state
are float32, and the bank holds {teachers} teachers. GiB throughout. A step is one of the optimizer; its time is
operations over {tflops:.0f} TFLOP/s a GPU, about 40 % of an A100's peak, with nothing for communication.
The step of `distill` has the bank and L_ins at every size; the file of XXL leaves both out.

- **One GPU of 40 GB takes T5-XL** through every stage that starts from the pretrained model. 8-bit frozen weights with
  gradient checkpointing (`--backbone.quantization=int8 --backbone.gradient_checkpointing=true`) bring it to about 20.
- **Store the frozen weights in 16 bits.** From float32 weights, bf16-mixed makes a 16-bit copy of every frozen layer
  and keeps it until the backward pass: another half of the backbone.
- **The bank of teachers is the largest thing that trains** at XL and XXL: gradients and AdamW's state are of the whole
  bank. Fewer categories or a lower rank shrink it in proportion.
- **fsdp wraps the whole model as one unit**, since `experiments/trainers/fsdp.yaml` names no blocks: all weights come
  together in every pass, and it shards float32 only. deepspeed keeps trained weights in 16 bits, with float32 copies in
  the sharded state of the optimizer.
- **A batch is shared, not multiplied.** More GPUs than examples read the same ones again: at XL's batch of 2, a third
  GPU adds nothing to `distill` until `--data.init_args.instances_per_task` grows.

## T5-XL, one GPU

`sum` adds up the columns before it; `with checkpointing` is the sum under `--backbone.gradient_checkpointing=true`, at
20 to 40 % more operations. Activations of `evaluate` are the keys and values of 32 examples.

{xl}

## T5-XL on several GPUs

GiB a GPU, without / with gradient checkpointing.

{devices}

## How frozen weights are stored

T5-XL on one GPU, GiB without / with gradient checkpointing.

{stored}

## Every size, one GPU

{sizes}

## Measured where it fits

One thread of a CPU, float32. *Kept* is what autograd saves, *sum* adds weights, gradients and the largest temporary
tensors, and *peak* is the growth of a process's memory by the model and its first batch, memory that the library takes
for itself included. The larger the model, the less is left to what the sum does not see.

{measured}
"""


def scale(
    size: str = "xl",
    devices: int = 1,
    strategy: Literal["ddp", "fsdp", "deepspeed_stage_2"] = "ddp",
    setting: str = "def",
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    quantization: Literal["int8"] | None = None,
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed",
    teachers: int = 60,
    tflops: float = 125.0,
    experiments: str = "experiments",
    markdown: bool = False,
) -> None:
    """Print what each stage needs at a size, told from shapes: nothing is computed, no weight is made.

    Args:
        size: Built-in T5 size: tiny, small, base, large, xl or xxl.
        devices: Number of GPUs; they share each batch.
        strategy: How they share the model.
        setting: What an instruction shows, def or def+2pos.
        dtype: Type the frozen weights are stored in.
        quantization: int8 for a frozen backbone in 8 bits.
        precision: The trainer's precision.
        teachers: Adapters in the bank; Super-NaturalInstructions has 60 training categories.
        tflops: Operations a GPU sustains in a second, in 10^12, for the estimated time.
        experiments: Folder of the experiment files, whose batches and ranks are taken.
        markdown: Print the whole of docs/scale.md, with all sizes and what is measured here; takes minutes.
    """
    from tagi_lightning.costs.lengths import INSTRUCTIONS
    from tagi_lightning.costs.scale_report import devices_table, measured_table, stage_table, storage_table, workloads
    from tagi_lightning.costs.stage_step import Execution

    if devices < 1 or teachers < 1 or tflops <= 0:
        raise ValueError(f"devices, teachers and tflops must be positive, got {devices}, {teachers} and {tflops}")
    folder = Path(experiments)
    execution = Execution(dtype, quantization, mixed=precision == "bf16-mixed", teachers=teachers)
    works = workloads(folder, size, setting)
    if not markdown:
        stored = f"frozen weights in {quantization or dtype}, {precision}, {teachers} teachers"
        print(f"T5 {size} on {devices} GPU(s), {strategy}: {stored}; GiB a GPU")
        print(stage_table(works, size, execution, strategy, devices, tflops))
        return
    tables = []
    for name in ("tiny", "small", "base", "large", "xxl"):
        print(f"scale: {name}", file=sys.stderr, flush=True)
        table = stage_table(workloads(folder, name, setting), name, Execution(), "ddp", 1, tflops)
        tables.append(f"### {name}\n\n{table}")
    works = workloads(folder, "xl", setting)
    print(
        DOCUMENT.format(
            instruction=INSTRUCTIONS[setting],
            teachers=Execution().teachers,
            tflops=tflops,
            xl=stage_table(works, "xl", Execution(), "ddp", 1, tflops),
            devices=devices_table(works, "xl", Execution(), (1, 4, 8)),
            stored=storage_table(works, "xl", ("teachers", "pretrain", "distill")),
            sizes="\n\n".join(tables),
            measured=measured_table(folder, ("tiny", "small"), setting),
        ),
        end="",
    )


main = options_of(scale)
