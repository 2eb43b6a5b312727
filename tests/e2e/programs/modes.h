/*
 * Programs that do one of many things, by name. Without a name they print all of them, for a table or a loop.
 */
#include <stdio.h>
#include <string.h>

struct mode {
	const char *name;
	void (*run)(void);
};

#define COUNT(modes) (sizeof(modes) / sizeof(*(modes)))

static inline const struct mode *find_mode(const struct mode *modes, size_t count, const char *name)
{
	for (size_t i = 0; name && i < count; i++)
		if (!strcmp(name, modes[i].name))
			return &modes[i];
	return NULL;
}

/* Returns the exit status. */
static inline int run_mode(const struct mode *modes, size_t count, const char *name)
{
	const struct mode *mode = find_mode(modes, count, name);

	if (mode) {
		mode->run();
		return 0;
	}
	for (size_t i = 0; i < count; i++)
		printf("%s\n", modes[i].name);
	return name ? 99 : 0;
}
