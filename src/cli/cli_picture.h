/* cli_picture.h - the commands for networks of pictures; private to main.c and cli_picture*.c. */
#ifndef NIBBLE_CLI_CLI_PICTURE_H
#define NIBBLE_CLI_CLI_PICTURE_H
#include "cli/cli.h"

/* The function that does `name` where the line is about pictures: a --model, or a file or folder of such a network among its arguments; else NULL. */
typedef int cl_command_function(int argc, char **argv);
cl_command_function *cl_picture_command(const char *name, int argc, char **argv);

int cl_picture_train(int argc, char **argv);
int cl_picture_qat(int argc, char **argv);
int cl_picture_fold(int argc, char **argv);
int cl_picture_eval(int argc, char **argv);
int cl_picture_info(int argc, char **argv);
int cl_picture_export(int argc, char **argv);
int cl_picture_ptq(int argc, char **argv);
int cl_picture_compare(int argc, char **argv);

/* What `nibble ptq` has for networks of pictures. */
status cl_picture_list_methods(bool json);
/* The pictures of --data. */
status cl_picture_data(fm_pictures *p, const cl_common *c, bool train);
/* Opens MODEL, with a recipe (NULL: its own). */
status cl_picture_open(md_picture_net *m, const char *path, const char *recipe);
/* A sheet about a network and a quantized one as SVG (picture_sheet.c). */
status cl_picture_sheet(const char *path, md_picture_net *plain, md_picture_net *coded, const fm_pictures *test);
#endif
