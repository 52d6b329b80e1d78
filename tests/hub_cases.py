"""
Push and pull over a real socket. Run by test_hub.py in a process of its own, once with Xet and once without, because
huggingface_hub reads HF_ENDPOINT and HF_HUB_DISABLE_XET when it is imported.
"""

import os
import shutil
import tempfile

from hub_server import serve
from hub_server.faults import answer, cut, is_commit, is_upload


SERVER = serve()
HUB = SERVER.__enter__()
os.environ.update(HF_ENDPOINT=HUB.url, HF_HOME=tempfile.mkdtemp(), HF_HUB_OFFLINE="0", TRANSFORMERS_OFFLINE="0")

import pytest  # noqa: E402
import torch  # noqa: E402
from huggingface_hub import HfApi, constants  # noqa: E402
from models import build, tiny_questions, tiny_tokenizer  # noqa: E402
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model  # noqa: E402
from safetensors.torch import load  # noqa: E402

from peft_dso import DSOConfig, DSOTrainer, DSOTrainerConfig  # noqa: E402
from peft_dso.export import push_adapter, save_card  # noqa: E402
from peft_dso.questions import load_winobias  # noqa: E402


XET = os.environ.get("HF_HUB_DISABLE_XET") != "1"
TOKEN = "hf_user"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def clean():
    """An empty cache and no faults for each test."""
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    HUB.faults.clear()
    HUB.log.clear()
    yield
    HUB.faults.clear()


def adapter(seed=0):
    base = build("llama")
    torch.manual_seed(seed)
    return get_peft_model(base, DSOConfig(init_weights=False, steering_strength=0.4, task_type="CAUSAL_LM")).eval()


def vectors(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if "dso_affine" in n}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def pull(name, **options):
    return PeftModel.from_pretrained(build("llama"), name, **{"token": TOKEN, **options})


def files(name, revision="main"):
    return HUB.repos["models", name].resolve(revision).files


def test_private_branches_tags_and_a_second_push():
    first, second = adapter(1), adapter(2)
    first.push_to_hub("user/one", private=True, token=TOKEN)
    assert HUB.repos["models", "user/one"].private
    assert {path.rpartition(".")[2] for path in files("user/one")} == {"gitattributes", "safetensors", "json", "md"}
    assert any("xorbs" in path for _, path in HUB.log) == XET
    assert same(vectors(pull("user/one")), vectors(first))
    assert pull("user/one").get_steering_strength() == 0.4
    shutil.rmtree(constants.HF_HUB_CACHE)
    with pytest.raises(ValueError, match="user/one"):  # PEFT's own error for what it cannot see
        pull("user/one", token=False)

    api = HfApi(token=TOKEN)
    api.create_tag("user/one", tag="v1")
    second.push_to_hub("user/one", token=TOKEN)
    assert same(vectors(pull("user/one")), vectors(second))
    assert same(vectors(pull("user/one", revision="v1")), vectors(first))
    first.push_to_hub("user/one", token=TOKEN, revision="dev/one")
    assert same(vectors(pull("user/one", revision="dev/one")), vectors(first))
    assert same(vectors(pull("user/one")), vectors(second))
    commits = len(HUB.repos["models", "user/one"].commits)
    second.push_to_hub("user/one", token=TOKEN)  # unchanged: no new commit
    assert len(HUB.repos["models", "user/one"].commits) == commits


def test_a_base_from_the_hub_too():
    base = build("llama")
    base.push_to_hub("user/base", token=TOKEN)
    model = get_peft_model(type(base).from_pretrained("user/base", token=TOKEN), DSOConfig(init_weights=False,
                           task_type="CAUSAL_LM"))  # fmt: skip
    model.push_to_hub("user/adapter", token=TOKEN)
    loaded = AutoPeftModelForCausalLM.from_pretrained("user/adapter", token=TOKEN)
    assert same(vectors(loaded), vectors(model))


def test_a_folder_with_its_card(tmp_path):
    model = adapter(10)
    model.save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    save_card(tmp_path, repo_id="user/carded", license="apache-2.0")
    push_adapter(tmp_path, "user/carded", token=TOKEN, private=True)
    found = files("user/carded")
    assert HUB.repos["models", "user/carded"].private
    assert set(found) == {".gitattributes", "README.md", "adapter_config.json", WEIGHTS}
    card = found["README.md"].data.decode()
    assert card.index("import peft_dso") < card.index("from_pretrained") and "library_name: peft" in card
    assert "license: apache-2.0" in card and "Nothing: no sweep" in card and '"user/carded")' in card
    model.push_to_hub("user/carded", token=TOKEN)  # keeps the card
    assert files("user/carded")["README.md"].data.decode() == card
    push_adapter(tmp_path, "user/carded", token=TOKEN, revision="dev")
    assert same(vectors(pull("user/carded", revision="dev")), vectors(model))
    with pytest.raises(ValueError, match="no adapter_config"):
        push_adapter(tmp_path / "nothing", "user/carded", token=TOKEN)


def test_the_trainer_pushes_what_may_leave_and_nothing_else(tmp_path):
    job = DSOTrainer(
        model=build("llama"),
        args=DSOTrainerConfig(
            str(tmp_path), max_steps=2, per_device_train_batch_size=4, questions_per_occupation=1, report_to=[],
            save_steps=1, use_cpu=True, bf16=False, hub_model_id="user/trained", hub_token=TOKEN, disable_tqdm=True,
        ),
        train_dataset=tiny_questions(),
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    job.train()
    (tmp_path / "secret.bin").write_bytes(b"not for the world")
    job.push_to_hub(private=True)
    found = files("user/trained")
    assert HUB.repos["models", "user/trained"].private and WEIGHTS in found
    assert {path.rpartition(".")[2] for path in found} <= {"gitattributes", "safetensors", "json", "md", "png"}
    assert not any("checkpoint" in path for path in found)
    card = found["README.md"].data.decode()
    assert "Nothing: no sweep" in card and "8 questions about 4 occupations" in card
    assert card.index("import peft_dso") < card.index("from_pretrained") and "- trl" in card and "license" not in card
    assert same(vectors(pull("user/trained")), vectors(job.model))


def test_questions_from_a_dataset_repository(tmp_path):
    """At the head and at a tag: what the local file gives."""
    api, sentence = HfApi(token=TOKEN), "1 [The nurse] called the farmer because [she] was late.\n"
    api.create_repo("user/sentences", repo_type="dataset")
    local = []
    for tag, text in (("v1", sentence), ("v2", sentence + sentence.replace("late", "early"))):
        (tmp_path / "test.txt").write_text(text)
        local.append(load_winobias(tmp_path / "test.txt"))
        api.upload_file(path_or_fileobj=tmp_path / "test.txt", path_in_repo="sets/test.txt",
                        repo_id="user/sentences", repo_type="dataset")  # fmt: skip
        api.create_tag("user/sentences", tag=tag, repo_type="dataset")
    assert len(local[0]) == 1 and len(local[1]) == 2
    assert load_winobias("hf://datasets/user/sentences/sets/test.txt") == local[1]
    assert load_winobias("hf://datasets/user/sentences@v1/sets/test.txt") == local[0]
    with pytest.raises(Exception, match="404"):
        load_winobias("hf://datasets/user/sentences/sets/other.txt")
    with pytest.raises(ValueError, match="not of the form hf://datasets/OWNER/NAME"):
        load_winobias("hf://user/sentences")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (answer(401, "Invalid username or password.", lambda h: h.path == "/api/repos/create"), "401"),
        (answer(403, "You don't have the rights", is_commit), "403|rights"),
        (answer(404, "Repository not found", is_commit, headers={"X-Error-Code": "RepoNotFound"}), "404|not found"),
        (answer(412, "The branch was updated since you opened this page.", is_commit), "412|updated"),
    ],
)
def test_a_refused_push_says_so_and_leaves_nothing_that_loads(fault, message):
    model = adapter(3)
    HUB.faults.append(fault)
    name = f"user/refused-{message[:3]}"
    with pytest.raises(Exception, match=message):
        model.push_to_hub(name, token=TOKEN)
    with pytest.raises(ValueError, match=name):
        pull(name)
    HUB.faults.clear()
    model.push_to_hub(name, token=TOKEN)
    assert same(vectors(pull(name)), vectors(model))


def test_a_connection_cut_in_the_middle_of_an_upload():
    model, calls = adapter(4), []

    def fault(h):
        if not is_upload(h):
            return False
        calls.append(h.path)
        return cut(h)

    HUB.faults.append(fault)
    if XET:  # hf_xet tries for a long time; a refusal ends it
        HUB.faults[:] = [answer(403, "no", is_upload)]
    with pytest.raises(Exception):  # noqa: B017  # of huggingface_hub or hf_xet, whose types differ
        model.push_to_hub("user/cut", token=TOKEN)
    assert calls or XET
    with pytest.raises(ValueError, match="user/cut"):
        pull("user/cut")
    HUB.faults.clear()
    model.push_to_hub("user/cut", token=TOKEN)
    assert same(vectors(pull("user/cut")), vectors(model))


def test_one_cut_or_500_and_then_success_goes_through():
    model = adapter(5)
    HUB.faults.append(answer(500, "try again", lambda h: "/preupload/" in h.path, times=1))
    once = []
    HUB.faults.append(lambda h: is_upload(h) and not once and (once.append(1), cut(h))[1])
    model.push_to_hub("user/again", token=TOKEN)
    assert once
    assert same(vectors(pull("user/again")), vectors(model))


def test_what_comes_down_broken_is_not_loaded():
    model = adapter(6)
    model.push_to_hub("user/broken", token=TOKEN)
    file = files("user/broken")[WEIGHTS]
    good, xet_of = file.data, dict(HUB.xet_of)
    HUB.xet_of.clear()  # plain HTTP, which checks no hash of what comes down
    flipped = bytearray(good)
    flipped[-2] ^= 255
    for data in (bytes(flipped), good[:-8]):
        file.data = data
        with pytest.raises(Exception, match=r"sha256 differs|[Cc]onsistency|size|complete"):
            pull("user/broken")
    file.data = good
    assert same(vectors(pull("user/broken")), vectors(model))
    HUB.xet_of.update(xet_of)


def test_a_download_that_breaks_off():
    model = adapter(7)
    model.push_to_hub("user/off", token=TOKEN)
    HUB.xet_of.clear()
    half = []

    def fault(h):
        if not (h.command == "GET" and h.path.endswith(WEIGHTS)):
            return False
        half.append(1)
        h.send_response(200)
        h.send_header("Content-Length", "5000")
        h.end_headers()
        h.wfile.write(b"\0" * 100)
        return cut(h)

    HUB.faults.append(fault)
    with pytest.raises(Exception):  # noqa: B017
        pull("user/off")
    assert half
    HUB.faults.clear()
    assert same(vectors(pull("user/off")), vectors(model))


def test_a_repository_with_a_pickle_alone_is_refused(tmp_path):
    model = adapter(8)
    model.push_to_hub("user/pickle", token=TOKEN)
    repo = HUB.repos["models", "user/pickle"]
    tree = dict(repo.resolve("main").files)
    tree["adapter_model.bin"] = tree.pop(WEIGHTS)
    repo.add_commit("refs/heads/main", tree, "only a pickle")
    with pytest.raises(ValueError, match="a pickle"):
        pull("user/pickle")
    with pytest.raises(ValueError, match="safe_serialization=True"):
        model.save_pretrained(tmp_path, safe_serialization=False)


def test_what_was_pushed_is_what_was_trained():
    model = adapter(9)
    model.push_to_hub("user/same", token=TOKEN)
    tensors = load(files("user/same")[WEIGHTS].data)
    mine = {n.replace(".default", ""): v for n, v in vectors(model).items()}
    assert same(tensors, mine)
