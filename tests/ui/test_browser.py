"""The page in a real browser, from an instruction to a folder that PEFT loads."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile

import pytest
import torch
from byte_tokenizer import build_byte_tokenizer
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig

from tagi_lightning.backbones import BackboneConfig, GenerationConfig, load_backbone
from tagi_lightning.data.instruction import Instruction, InstructionPrompts
from tagi_lightning.data.task import Demonstration
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.inference.instructed import InstructedModel
from tagi_lightning.lora import LoraConfig
from tagi_lightning.model import TagiConfig
from tagi_lightning.peft_io.folders import difference
from tagi_lightning.storage.serialization import save_tagi

pytest.importorskip("streamlit", reason="the page needs the extra [ui]")
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium to drive a browser")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium: apt-get install chromium chromium-driver"),
]
GIVEN = Instruction("Say the first word.", (Demonstration("1 2", "1"),))
INPUT = "the word say"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained):
    """A folder with a tiny decoder-only backbone, a TAGI-LoRA model and known tasks; not to be changed."""
    folder, tokenizer = tmp_path_factory.mktemp("ui"), build_byte_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.3, **shape)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    config = TagiConfig(LoraConfig(rank=4), fusion=FusionConfig(enabled=False), decoder_memory=False)
    model = trained(load_backbone(BackboneConfig(str(folder / "backbone"))), config)
    save_tagi(model, folder / "model", prompts=InstructionPrompts("causal", demonstrations=1, max_input_length=400))
    rows = [{"instruction": "Say the first word.", "task": "first"}, {"instruction": "1 2", "task": "two"}]
    (folder / "known.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    """The address of `tagi ui`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["ui", "--model", folder / "model", "--tasks", folder / "known.jsonl", "--port", port]
    process = subprocess.Popen(
        [sys.executable, "-m", "tagi_lightning.cli", *map(str, words), "--max_new_tokens", "6"],
        stderr=subprocess.PIPE,
        text=True,
    )
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        assert process.poll() is None, process.stderr.read()
        try:
            urllib.request.urlopen(f"{address}/_stcore/health")
            break
        except urllib.error.URLError:
            time.sleep(0.2)
    yield address
    process.terminate()
    process.wait(30)


@pytest.fixture
def browser(tmp_path):
    """Chromium without a window, which downloads into `tmp_path`."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def waited(find, seconds=60):
    """Returns what `find` gives as soon as that is something."""
    end = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)
    return found


def element(browser, xpath):
    return waited(lambda: browser.find_elements("xpath", xpath))[0]


def write(browser, label, text):
    element(browser, f"//textarea[@aria-label='{label}']").send_keys(text)


def press(browser, label):
    element(browser, f"//button[not(@disabled)][.//p[starts-with(., '{label}')]]").click()


def requested(browser):
    """Returns the addresses that the browser asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [each["request"]["url"] for each in asked]


def test_an_instruction_becomes_answers_and_a_folder_that_peft_loads(browser, server, folder, tmp_path):
    browser.get(server)
    write(browser, "Instruction", GIVEN.text)
    write(browser, "Example 1: input (optional)", GIVEN.demonstrations[0].input)
    write(browser, "Example 1: output", GIVEN.demonstrations[0].output)
    press(browser, "Make the adapter")
    nearest = element(browser, "//table").text.split()
    assert nearest[:2] == ["task", "cosine"]
    assert nearest[2] == "first"
    assert element(browser, "//*[@data-testid='stVegaLiteChart']//*[name()='svg']").is_displayed()

    write(browser, "Input 1", INPUT)
    press(browser, "Compare")
    titles = "With the adapter", "Without: instruction in the prompt", "Without: the input alone"
    for title in titles:
        assert element(browser, f"//strong[.='{title}']").is_displayed()
    loaded = InstructedModel.load(folder / "model")
    adapter = loaded.adapt(GIVEN)
    [expected] = loaded.generate(adapter, [INPUT], GenerationConfig(max_new_tokens=6))
    codes = [each.text for each in browser.find_elements("css selector", "[data-testid=stCode]")]
    assert codes[:3] == [GIVEN.text, INPUT, " ".join(expected.split()) or "(nothing)"]

    press(browser, "Make the PEFT folder")
    press(browser, "Download")
    [archive] = waited(lambda: list(tmp_path.glob("*.zip")))
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(folder / "backbone")
    assert difference(plain, loaded.model.backbone, adapter.lora) > 1e-2
    theirs = PeftModel.from_pretrained(plain, str(tmp_path / GIVEN.folder_name)).eval()
    assert difference(theirs, loaded.model.backbone, adapter.lora) < 1e-5

    elsewhere = [url for url in requested(browser) if not url.startswith((server, "data:", "blob:", "chrome"))]
    assert elsewhere == []


def test_an_error_is_told_in_words(browser, server):
    browser.get(server)
    press(browser, "Make the adapter")
    assert element(browser, "//*[@data-testid='stAlert']").text == "Say in words what the task is."


@pytest.mark.parametrize(
    ("path", "method", "headers"),
    [
        ("/_stcore/upload_file/a/b", "PUT", {}),
        ("/", "GET", {"Host": "elsewhere.example"}),
        ("/_stcore/stream", "GET", {"Origin": "http://elsewhere.example"}),
    ],
)
def test_what_is_not_the_page_is_refused(server, path, method, headers):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(f"{server}{path}", method=method, headers=headers))
