/* recipes.h - the recipes that ship (private to fakequant/). */
#ifndef NIBBLE_FAKEQUANT_RECIPES_H
#define NIBBLE_FAKEQUANT_RECIPES_H
#include <stdint.h>

typedef struct {
    const char *name, *explanation, *text; /* text: the form of a recipe file */
} fq_named;
const fq_named *fq_named_recipes(int64_t *n);

#endif
