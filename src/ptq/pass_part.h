/* pass_part.h - what a pass has finished, kept in a folder so that the same command goes on behind it, to the same bits (private to ptq/).
 *   FOLDER/METHOD-N.h5, kind "part", attribute key: all that decides the result. Of passes that go block by block N is the block
 *   (/param/NAME F32, /site/NAME F64 of all that is "layers.N."), of others 0
 * A part that another run left is NB_USAGE. pt_part_discard (ptq.h) removes the files.
 */
#ifndef NIBBLE_PTQ_PASS_PART_H
#define NIBBLE_PTQ_PASS_PART_H
#include "ptq/ptq.h"

typedef struct {
    const char *folder, *method; /* folder NULL: nothing is kept, nothing is found */
    char *key;                   /* the caller's, by nb_json_text of what pt_part_key began */
} pt_part;

/* Begins the key, an object: method, recipe, windows, seed, precision, and a checksum of the model as it stands and of ids [windows, length]. The
 * pass adds what else decides its result and closes it. */
void pt_part_key(nb_writer *w, const md_model *m, const pt_options *o, const char *method, const int32_t *ids, int64_t windows, int64_t length);

/* A part by its number, for a pass that keeps something of its own: read it and close it, or write and commit it. *found, or false with NB_OK. */
status pt_part_open(fm_h5 *f, const pt_part *p, int64_t n, bool *found);
status pt_part_create(fm_h5 *f, const pt_part *p, int64_t n);

/* Block `layer` as it stands in m. *found: it was there and stands in m now. */
status pt_part_load(md_model *m, const pt_part *p, int64_t layer, bool *found);
status pt_part_save(md_model *m, const pt_part *p, int64_t layer);

bool pt_is_of_block(const char *name, int64_t layer); /* "layers.N.": of a parameter, of a site */

#endif
