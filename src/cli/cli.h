/* cli.h - the commands of the `nibble` program and what they share.
 *
 * Exit codes: 0 done, 1 failed, 2 wrong usage (an unknown option, a request that makes no sense), 130 interrupted, with
 * everything saved that can be gone on from. Only results go to stdout.
 */
#ifndef NIBBLE_CLI_CLI_H
#define NIBBLE_CLI_CLI_H
#include "cli/options.h"
#include "cli/terminal.h"
#include "distill/distill.h"

/* Every command once: name, function. Each is called with argv[0] = its name and returns the exit code. */
#define CL_COMMAND_LIST(X)                                                                                             \
    X(shrink, "a small file of integers from a float model, in the time you have")                                     \
    X(info, "what a file or a run folder holds")                                                                       \
    X(eval, "likelihood of a text, and the distance to a teacher")                                                     \
    X(data, "let a model write its own training data")                                                                 \
    X(qat, "train a model to live on integers")                                                                        \
    X(train, "train a model from scratch on text")                                                                     \
    X(fold, "make a file of integers from a trained or a float model")                                                 \
    X(ptq, "quantize a model without training")                                                                        \
    X(compare, "every way to quantize a model, in one table")                                                         \
    X(run, "continue a text")                                                                                          \
    X(export, "write a model in another program's format")                                                             \
    X(convert, "a float model from one file format into another")                                                      \
    X(recipes, "the named recipes, and what one of them says")                                                         \
    X(bench, "how fast training and running are here")
#define X(name, summary) int cl_##name(int argc, char **argv);
CL_COMMAND_LIST(X)
#undef X

/* Before work: checks NIBBLE_ISA, sets the threads, warns where OPENBLAS_CORETYPE slows the library down. */
status cl_begin(const cl_common *c);
/* What the program itself has put into OPENBLAS_CORETYPE (main.c), so that it is told from what the user did. */
#define CL_BLAS_CORE "NIBBLE_BLAS_CORE"
const char *cl_users_blas_core(void); /* OPENBLAS_CORETYPE as the user set it, or NULL */
/* h with a file's name, size and time of its last change: a stamp of what is kept of it. A name that is no file counts as a name. */
uint64_t cl_hash_file(uint64_t h, const char *path);
int cl_exit(status s); /* the exit code; prints "nibble: message" where s is no success */

/* What -o names must not be there unless --force, and its folder must be: asked before any work. is_folder: what
 * will be written is a folder (an empty one may be there). */
status cl_check_output(const cl_common *c, bool is_folder);
/* Precision of float products; auto: bf16 where the CPU is faster at it and the model (its width) large enough to gain from it. */
bool cl_takes_bf16(const cl_common *c, int64_t width);
status cl_precision(kn_precision *p, const cl_common *c, const md_config *config);
/* A model file or run folder, with the tokenizer of the common options if there is one. recipe: NULL, or one for a
 * float model. train: latent floats are wanted. */
status cl_open_model(md_model *m, const char *path, const cl_common *c, const char *recipe, bool train);
/* A float model in codes by a recipe, never whole in memory as floats (md_open_options.fold). */
status cl_open_codes(md_model *m, const char *path, const cl_common *c, const char *recipe, fq_start start);
/* A text or token file, with the model's tokenizer. A token file may carry the one that the model's own file lacks: the model
 * keeps it, so that what is made of it runs. */
status cl_open_data(fm_tokens *t, const char *path, const cl_common *c, md_model *m);
/* What fold and ptq end with: the size of the model that was written to -o; method NULL: plain folding. */
status cl_report_folded(const md_model *m, const char *method, const cl_common *c);
/* Text to stdout, flushed at once; NB_IO when it cannot be written. */
status cl_print(const char *text, size_t bytes);
status cl_print_explained(const char *name, const char *explanation); /* a method: its name, then the two lines beside it */
/* The targets of export; floats: those without codes. What was written, for export and convert. */
status cl_list_targets(bool floats, bool json);
status cl_say_written(const cl_common *c, const char *target, const char *report);
/* What a writer holds as one line on stdout. */
status cl_print_json(nb_writer *w);

#endif
