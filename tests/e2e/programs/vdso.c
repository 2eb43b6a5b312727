/*
 * Finds a vDSO function in the ways that programs use: "sysv", "gnu" (hash tables of the dynamic section),
 * "sections" (section headers), "loader" (dlvsym in the loaded object), "weak" (a weak symbol),
 * "default" (dlsym in all objects, dladdr), "walk" (dl_iterate_phdr). The second argument
 * is the function's name. Mode "time" checks that clocks need no system call: it makes those calls fail first.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

extern int __vdso_sgx_enter_enclave(void) __attribute__((weak));
extern int __vdso_clock_gettime(void) __attribute__((weak));

static const char *base;
static uintptr_t slide;
static const ElfW(Sym) *symbols;
static const char *strings;
static const uint32_t *sysv, *gnu;
static const uint16_t *versions;

static const void *at(uintptr_t address)
{
	return (const void *)(slide + address);
}

static int read_dynamic(void)
{
	const ElfW(Ehdr) *header = (const void *)base;
	const ElfW(Phdr) *program = (const void *)(base + header->e_phoff);
	const ElfW(Dyn) *dynamic = NULL;

	for (int i = 0; i < header->e_phnum; i++) {
		if (program[i].p_type == PT_LOAD && !slide)
			slide = (uintptr_t)base + program[i].p_offset - program[i].p_vaddr;
		if (program[i].p_type == PT_DYNAMIC)
			dynamic = (const void *)(base + program[i].p_offset);
	}
	for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++) {
		switch (dynamic->d_tag) {
		case DT_SYMTAB: symbols = at(dynamic->d_un.d_ptr); break;
		case DT_STRTAB: strings = at(dynamic->d_un.d_ptr); break;
		case DT_HASH: sysv = at(dynamic->d_un.d_ptr); break;
		case DT_GNU_HASH: gnu = at(dynamic->d_un.d_ptr); break;
		case DT_VERSYM: versions = at(dynamic->d_un.d_ptr); break;
		}
	}
	return symbols && strings;
}

static int is_it(const ElfW(Sym) *symbol, const char *names, const char *name)
{
	return symbol->st_shndx != SHN_UNDEF && !strcmp(names + symbol->st_name, name);
}

static const ElfW(Sym) *by_sysv(const char *name)
{
	uint32_t hash = 0;

	if (!sysv)
		return NULL;
	for (const char *c = name; *c; c++) {
		hash = (hash << 4) + (unsigned char)*c;
		hash ^= (hash & 0xf0000000) >> 24;
		hash &= 0x0fffffff;
	}
	for (uint32_t i = sysv[2 + hash % sysv[0]]; i; i = sysv[2 + sysv[0] + i])
		if (is_it(&symbols[i], strings, name))
			return &symbols[i];
	return NULL;
}

static const ElfW(Sym) *by_gnu(const char *name)
{
	uint32_t hash = 5381;

	if (!gnu)
		return NULL;
	for (const char *c = name; *c; c++)
		hash = hash * 33 + (unsigned char)*c;
	const uint64_t *bloom = (const void *)(gnu + 4);
	const uint32_t *buckets = (const void *)(bloom + gnu[2]), *chain = buckets + gnu[0];
	uint64_t word = bloom[hash / 64 % gnu[2]];

	if (!(word >> (hash % 64) & word >> ((hash >> gnu[3]) % 64) & 1))
		return NULL;
	uint32_t i = buckets[hash % gnu[0]];

	if (i < gnu[1])
		return NULL;
	for (;; i++) {
		uint32_t other = chain[i - gnu[1]];

		if ((other | 1) == (hash | 1) && is_it(&symbols[i], strings, name))
			return &symbols[i];
		if (other & 1)
			return NULL;
	}
}

static const ElfW(Sym) *by_sections(const char *name)
{
	const ElfW(Ehdr) *header = (const void *)base;
	const ElfW(Shdr) *sections = (const void *)(base + header->e_shoff);

	if (!header->e_shoff || !header->e_shnum)
		return NULL;
	const char *names = base + sections[header->e_shstrndx].sh_offset;

	for (int i = 0; i < header->e_shnum; i++) {
		if (sections[i].sh_type != SHT_DYNSYM || strcmp(names + sections[i].sh_name, ".dynsym"))
			continue;
		const ElfW(Sym) *table = (const void *)(base + sections[i].sh_offset);
		const char *texts = base + sections[sections[i].sh_link].sh_offset;

		for (size_t k = 0; k < sections[i].sh_size / sizeof(*table); k++)
			if (is_it(&table[k], texts, name))
				return &table[k];
	}
	return NULL;
}

/* In the scope of all objects, before and after the vDSO joins them. */
static void in_all_objects(const char *name)
{
	const int before = dlsym(RTLD_DEFAULT, name) != NULL, clock = dlsym(RTLD_DEFAULT, "__vdso_clock_gettime") != NULL;
	void *vdso = dlopen("linux-vdso.so.1", RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL);
	void *function = dlsym(RTLD_DEFAULT, name);
	Dl_info about = { 0 };

	printf("before like the clock's %d, after %d, the object's own %d\n", before == clock, function != NULL,
	       vdso && function == dlsym(vdso, name));
	/* Functions have several names. */
	const int known = function && dladdr(function, &about) && about.dli_sname;

	printf("back from its address %d, in the vDSO %d\n", known, about.dli_fbase == (void *)getauxval(AT_SYSINFO_EHDR));
}

/* As unwinders and profilers go over all objects. */
static int visit(struct dl_phdr_info *object, size_t size, void *count)
{
	(void)size;
	for (int i = 0; i < object->dlpi_phnum; i++) {
		const ElfW(Phdr) *header = &object->dlpi_phdr[i];

		if (header->p_type == PT_LOAD && object->dlpi_addr + header->p_vaddr == getauxval(AT_SYSINFO_EHDR)) {
			printf("%s has the vDSO's address\n", object->dlpi_name);
			++*(int *)count;
		}
	}
	return 0;
}

static int clocks_without_calls(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_gettime, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_gettimeofday, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 38),
	};
	struct sock_fprog program = { sizeof(filter) / sizeof(*filter), filter };
	struct timespec now, later;
	struct timeval day;

	printf("no new privileges %d\n", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	printf("filter %d\n", prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0));
	printf("the system call %ld\n", syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now));
	printf("monotonic %d", clock_gettime(CLOCK_MONOTONIC, &now));
	printf(" %d", clock_gettime(CLOCK_MONOTONIC, &later));
	printf(", in order %d\n", later.tv_sec > now.tv_sec || later.tv_nsec >= now.tv_nsec);
	printf("real time %d", clock_gettime(CLOCK_REALTIME, &now));
	printf(" %d, agree %d\n", gettimeofday(&day, NULL), day.tv_sec - now.tv_sec <= 1);
	return 0;
}

int main(int argc, char **argv)
{
	const ElfW(Sym) *symbol = NULL;
	const char *mode = argv[1], *name = argc > 2 ? argv[2] : "";

	if (!strcmp(mode, "time"))
		return clocks_without_calls();
	if (!strcmp(mode, "weak")) {
		/* Some loaders resolve weak symbols from the vDSO, others never do: ours must be like the rest. */
		printf("like the clock's: %d\n",
		       (__vdso_sgx_enter_enclave != NULL) == (__vdso_clock_gettime != NULL));
		return 0;
	}
	if (!strcmp(mode, "loader")) {
		void *vdso = dlopen("linux-vdso.so.1", RTLD_LAZY | RTLD_NOLOAD);

		printf("object %d, symbol %d, with another version %d\n", vdso != NULL,
		       vdso && dlvsym(vdso, name, "LINUX_2.6"), vdso && dlvsym(vdso, name, "LINUX_9.9"));
		return 0;
	}
	if (!strcmp(mode, "default")) {
		in_all_objects(name);
		return 0;
	}
	if (!strcmp(mode, "walk")) {
		int count = 0;

		dl_iterate_phdr(visit, &count);
		return count != 1;
	}
	base = (const char *)getauxval(AT_SYSINFO_EHDR);
	if (!base || memcmp(base, ELFMAG, SELFMAG) || !read_dynamic()) {
		printf("no vDSO\n");
		return 1;
	}
	if (!strcmp(mode, "sysv"))
		symbol = by_sysv(name);
	else if (!strcmp(mode, "gnu"))
		symbol = by_gnu(name);
	else
		symbol = by_sections(name);
	printf("found %d, a function %d, versions %d\n", symbol != NULL,
	       symbol && ELF64_ST_TYPE(symbol->st_info) == STT_FUNC, versions != NULL);
	return symbol == NULL;
}
