"""nibble compare from outside: rows are what ptq, eval and info say one by one; it resumes; it prints four ways.

    test_cli_compare.py PROGRAM      needs ../shared/data beside the project
"""
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from xml.etree import ElementTree

import test_cli as cli
from test_cli import MODEL, PROGRAM, TOKENIZER, parsed, run

KEYS = ["method", "recipe", "bpw", "bytes", "ppl", "ppl_ci95", "kl", "same_top", "prefill_tok_s", "decode_tok_s", "seconds",
        "peak_bytes"]


class Folder(unittest.TestCase):
    """One folder for all, with samples and a quantized file."""

    @classmethod
    def setUpClass(cls):
        cls.home, cls.folder = os.getcwd(), tempfile.TemporaryDirectory()
        os.chdir(cls.folder.name)
        run("data", MODEL, *TOKENIZER, "--tokens", "2k", "--ctx", "64", "--seed", "1", "-o", "some.h5")
        run("data", MODEL, *TOKENIZER, "--tokens", "1k", "--ctx", "64", "--seed", "2", "-o", "heldout.h5")
        run("ptq", "mse", MODEL, *TOKENIZER, "--recipe", "w4a8kv8", "-o", "mse.h5")
        with open("no model.h5", "w") as file:
            file.write("nothing")

    @classmethod
    def tearDownClass(cls):
        os.chdir(cls.home)
        cls.folder.cleanup()

    @staticmethod
    def line(work, *more):
        return ["compare", MODEL, *more, *TOKENIZER, "--data", "some.h5", "--eval-data", "heldout.h5", "--calib-samples", "4",
                "--calib-length", "64", "--work", work]


@cli.needs_data
class Compare(Folder):
    def test_rows_are_what_the_commands_say(self):
        rows = parsed(*self.line("a", "mse.h5", "no model.h5"), "--methods", "rtn,rotate+importance", "--recipe", "q4_0,w4a8kv8")
        self.assertEqual([(r["method"], r["recipe"]) for r in rows],
                         [("float", "float"), ("float", "f16"), ("rtn", "q4_0"), ("rtn", "w4a8kv8"), ("rotate+importance", "q4_0"),
                          ("rotate+importance", "w4a8kv8"), ("mse.h5", "w4a8kv8"), ("no model.h5", "")])
        for r in rows[:-1]:
            self.assertEqual(list(r), KEYS)
            self.assertTrue(r["ppl_ci95"][0] < r["ppl"] < r["ppl_ci95"][1])
            self.assertTrue(min(r["prefill_tok_s"], r["decode_tok_s"]) > 0)
        self.assertIn("no model.h5", rows[-1]["error"])
        self.assertIsNone(rows[-1]["ppl"])
        self.assertEqual((rows[0]["kl"], rows[0]["same_top"], rows[0]["bytes"]), (0, 1, 4 * 260032))
        self.assertEqual((round(rows[1]["bpw"]), rows[1]["same_top"] > 0.99), (16, True))
        for r in rows[1:6]:
            self.assertTrue(r["seconds"] > 0 and r["peak_bytes"] > 1e6)
        told = parsed("eval", "mse.h5", "--teacher", MODEL, "--data", "heldout.h5")
        size = parsed("info", "mse.h5")
        for key, value in [("ppl", told["ppl"]), ("kl", told["kl"]), ("bytes", size["bytes"]), ("bpw", size["bits_per_param"])]:
            self.assertEqual(rows[6][key], value, key)
        run("ptq", "rotate+importance", MODEL, *TOKENIZER, "--recipe", "q4_0", "--data", "some.h5", "--calib-samples", "4",
            "--calib-length", "64", "-o", "turned.h5")
        self.assertEqual(rows[4]["kl"], parsed("eval", "turned.h5", "--teacher", MODEL, "--data", "heldout.h5")["kl"])
        self.assertFalse([f for f in os.listdir("a") if f.endswith(".h5")])  # quantized files go without --keep

        line = [*self.line("a", "mse.h5", "no model.h5"), "--methods", "rtn,rotate+importance", "--recipe", "q4_0,w4a8kv8"]
        read = list(csv.DictReader(io.StringIO(run(*line, "--csv")[0])))
        self.assertEqual([r["method"] for r in read], [r["method"] for r in rows])
        self.assertEqual([float(r["kl"]) for r in read[:-1]], [float(f"{r['kl']:.12g}") for r in rows[:-1]])
        self.assertEqual(float(read[0]["bytes_of_fp16"]), 2)
        table = run(*line, "--markdown")[0].splitlines()
        self.assertEqual({row.count("|") for row in table[:len(rows) + 2]}, {12})
        self.assertEqual(len(run(*line)[0].splitlines()), len(rows) + 2)

    def test_it_goes_on_where_it_was_interrupted(self):
        line = [*self.line("c"), "--methods", "rtn,mse,importance@w4a16g32", "--recipe", "q4_0", "--json"]
        started = subprocess.Popen([PROGRAM, *line], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.time() + 120
        while started.poll() is None and time.time() < deadline:
            if os.path.isdir("c") and any(f.startswith("rtn") and f.endswith(".json") for f in os.listdir("c")):
                started.send_signal(signal.SIGTERM)
                break
            time.sleep(0.002)
        kept = {f: os.stat(f"c/{f}").st_mtime_ns for f in os.listdir("c") if f.startswith("rtn") and f.endswith(".json")}
        if started.wait() != 0:
            self.assertEqual(started.returncode, 130)
        rows = json.loads(run(*line)[0])
        self.assertEqual([r["method"] for r in rows], ["float", "float", "rtn", "mse", "importance"])
        self.assertEqual(rows[-1]["recipe"], "w4a16g32")
        self.assertEqual({f: os.stat(f"c/{f}").st_mtime_ns for f in kept}, kept)
        again = json.loads(run(*line, "--restart")[0])
        for a, b in zip(rows, again):
            self.assertEqual((a["kl"], a["ppl"], a["bytes"]), (b["kl"], b["ppl"], b["bytes"]))
        shutil.rmtree("c")

    def test_wrong_usage_exits_with_2(self):
        for more, words in [(["--methods", "rtn,nothing"], "nothing"), (["--methods", "rtn@q9"], "q9"), (["--methods", "nf4@q4_0"], "takes no recipe"), (["--recipe", "q9"], "q9"),
                            (["--json", "--csv"], "one of them"), (["--calib-length", "9k"], "context")]:
            with self.subTest(words):
                self.assertIn(words, run(*self.line("d"), *more, code=2)[1])
        self.assertIn("already", run("compare", "mse.h5", "--work", "d", code=2)[1])


@cli.needs_data
class All(Folder):
    """What takes as long as all methods do."""

    def test_the_report_is_one_page_that_needs_nothing_else(self):
        run(*self.qat_line())
        run(*self.line("e", "mse.h5", "run"), "--methods", "rtn,importance", "--recipe", "q4_0", "--html", "report.html")
        page = cli.content("report.html").decode()
        for title in ["Perplexity against bits", "KL per layer", "Weights and clip points", "Activations and clip points", "Outlier channels",
                      "Training", "Weights beside a normal", "Accuracy against group size", "Bytes against group size"]:
            self.assertIn(title, page)
        self.assertIn("prefers-color-scheme:dark", page)
        for foreign in ["http", "<script", "src=", "url(", "nan", "inf\""]:
            self.assertNotIn(foreign, page)
        for svg in re.findall(r"<svg.*?</svg>", page, re.S):
            seen = [(float(e.get("x", 0)), float(e.get("y", 0))) for e in ElementTree.fromstring(svg).iter("text")]
            self.assertTrue(all(0 <= x <= 640 and 0 <= y <= 360 for x, y in seen), seen)

    @staticmethod
    def qat_line():
        return ["qat", MODEL, *TOKENIZER, "--data", "some.h5", "--heldout", "heldout.h5", "--recipe", "w4a8kv8", "--steps", "6", "--batch", "4",
                "-o", "run"]

    def test_all_is_every_method(self):
        listed = list(parsed("ptq", "--list"))
        made = parsed(*self.line("b"), "--methods", "all", "--recipe", "q4_0")
        named = {part for r in made for part in r["method"].split("+")}
        self.assertEqual(set(listed) - named, {"biascorrect"})  # a model without biases
        self.assertEqual([r["error"] for r in made if "error" in r], [])


if __name__ == "__main__":
    unittest.main()
