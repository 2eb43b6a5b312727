/*
 * Works with an enclave until told to stop, and says whether the enclave still holds what was put into it.
 *
 *   enclave_worker key FILE                      makes a signing key
 *   enclave_worker measure IMAGE KEY PAGES       measures and signs, needs no device
 *   enclave_worker stream IMAGE FILE PAGES       writes the enclave as an SGX stream, for other tools
 *   enclave_worker run IMAGE KEY PAGES STEP...   builds the enclave, then takes the steps:
 *
 *     more N         builds N more enclaves alike; steps after it are about all of them
 *     fill SEED      writes one word into each heap page
 *     verify SEED    reads them back; a wrong word or an exception ends the program with status 3
 *     loop N SEED    N rounds of fill and verify, each with another seed
 *     forever SEED   as loop, without end
 *     hold           prints "holding" and waits for a line on standard input
 *     fork SEED      a child verifies SEED and fills SEED + 1, then the parent verifies that
 *
 * IMAGE is the kernel selftests' enclave (test_encl.elf): its operations 2 and 3 write and read 8 bytes at an
 * address. One word for each page is touched, so that each operation costs one page of EPC and no more.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "entry.h"
#include "sign.h"

enum {
	PAGE = 4096,
	MAX_SEGMENTS = 8,
	MAX_ENCLAVES = 512,
	EENTER = 2,
	EEXIT = 4,
	OP_PUT = 2,
	OP_GET = 3,
	SECINFO_TCS = 0x100,
	SECINFO_REG = 0x200,
	ATTRIBUTES_MODE64 = 4,
	XFRM_LEGACY = 3,
};

struct segment {
	uint64_t offset, size, flags;
	const uint8_t *source;
	int protection, measured;
};

struct image {
	struct segment segments[MAX_SEGMENTS];
	int count;
	uint64_t size, heap, heap_pages;
	uint8_t measurement[32];
};

struct secs {
	uint64_t size, base;
	uint32_t ssa_frame_size, miscselect;
	uint8_t reserved[24];
	uint64_t attributes, xfrm;
	uint8_t rest[PAGE - 64];
};

struct operation {
	uint64_t type, value, address;
};

static struct sigstruct signature __attribute__((aligned(PAGE)));
static uint8_t *bases[MAX_ENCLAVES];
static uint64_t enclaves;
/* Of the enclave at work. */
static uint8_t *base;
static struct sgx_enclave_run state;
static const void *vdso_enter;
static struct image image;

static const void *map_file(const char *path, size_t *length)
{
	struct stat about;
	int file = open(path, O_RDONLY | O_CLOEXEC);

	if (file < 0 || fstat(file, &about))
		fail(2, "cannot open %s: %s", path, strerror(errno));
	const void *bytes = mmap(NULL, about.st_size, PROT_READ, MAP_PRIVATE, file, 0);

	close(file);
	if (bytes == MAP_FAILED)
		fail(2, "cannot map %s: %s", path, strerror(errno));
	*length = about.st_size;
	return bytes;
}

static uint64_t round_up(uint64_t bytes)
{
	return (bytes + PAGE - 1) / PAGE * PAGE;
}

static void load_image(const char *path, uint64_t heap_pages)
{
	size_t length;
	const uint8_t *bytes = map_file(path, &length);
	const Elf64_Ehdr *header = (const void *)bytes;
	const Elf64_Phdr *program = (const void *)(bytes + header->e_phoff);
	uint64_t end = 0;

	for (int i = 0; i < header->e_phnum && image.count < MAX_SEGMENTS - 1; i++) {
		if (program[i].p_type != PT_LOAD)
			continue;
		struct segment *segment = &image.segments[image.count];

		segment->offset = program[i].p_vaddr;
		segment->size = round_up(program[i].p_filesz);
		segment->source = bytes + program[i].p_offset;
		segment->measured = 1;
		segment->protection = (program[i].p_flags & PF_R ? PROT_READ : 0) |
				      (program[i].p_flags & PF_W ? PROT_WRITE : 0) |
				      (program[i].p_flags & PF_X ? PROT_EXEC : 0);
		/* The first one holds the thread control structures; PROT_* and SECINFO have the same low bits. */
		segment->flags = image.count ? SECINFO_REG | segment->protection : SECINFO_TCS;
		end = segment->offset + segment->size;
		image.count++;
	}
	image.heap = end;
	image.heap_pages = heap_pages;
	if (heap_pages) {
		struct segment *heap = &image.segments[image.count++];

		*heap = (struct segment){
			.offset = end,
			.size = heap_pages * PAGE,
			.flags = SECINFO_REG | PROT_READ | PROT_WRITE,
			.protection = PROT_READ | PROT_WRITE,
			.source = mmap(NULL, heap_pages * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
		};
		end += heap->size;
	}
	for (image.size = PAGE; image.size < end;)
		image.size *= 2;
}

static void fill_block(uint8_t *block, const char *leaf, uint64_t first, uint64_t second, int first_is_short)
{
	memset(block, 0, 64);
	/* ECREATE's size of an SSA frame is 32 bits wide and comes first; the others have two 64-bit words. */
	strncpy((char *)block, leaf, 8);
	if (first_is_short) {
		memcpy(block + 8, &first, 4);
		memcpy(block + 12, &second, 8);
	} else {
		memcpy(block + 8, &first, 8);
		memcpy(block + 16, &second, 8);
	}
}

static void record(EVP_MD_CTX *hash, const char *leaf, uint64_t first, uint64_t second, int first_is_short)
{
	uint8_t block[64];

	fill_block(block, leaf, first, second, first_is_short);
	EVP_DigestUpdate(hash, block, sizeof(block));
}

static void measure(void)
{
	EVP_MD_CTX *hash = EVP_MD_CTX_new();

	EVP_DigestInit_ex(hash, EVP_sha256(), NULL);
	record(hash, "ECREATE", 1, image.size, 1);
	for (int i = 0; i < image.count; i++) {
		const struct segment *segment = &image.segments[i];

		for (uint64_t page = 0; page < segment->size; page += PAGE) {
			record(hash, "EADD", segment->offset + page, segment->flags, 0);
			for (uint64_t chunk = 0; segment->measured && chunk < PAGE; chunk += 256) {
				record(hash, "EEXTEND", segment->offset + page + chunk, 0, 0);
				EVP_DigestUpdate(hash, segment->source + page + chunk, 256);
			}
		}
	}
	EVP_DigestFinal_ex(hash, image.measurement, NULL);
	EVP_MD_CTX_free(hash);
}

/* The same records, with the contents of pages that are not measured as well. */
static void write_stream(const char *path)
{
	FILE *file = fopen(path, "w");
	uint8_t block[64];

	if (!file)
		fail(2, "cannot write %s: %s", path, strerror(errno));
	fill_block(block, "ECREATE", 1, image.size, 1);
	fwrite(block, sizeof(block), 1, file);
	for (int i = 0; i < image.count; i++) {
		const struct segment *segment = &image.segments[i];

		for (uint64_t page = 0; page < segment->size; page += PAGE) {
			fill_block(block, "EADD", segment->offset + page, segment->flags, 0);
			fwrite(block, sizeof(block), 1, file);
			for (uint64_t chunk = 0; segment->measured && chunk < PAGE; chunk += 256) {
				fill_block(block, "EEXTEND", segment->offset + page + chunk, 0, 0);
				fwrite(block, sizeof(block), 1, file);
				fwrite(segment->source + page + chunk, 256, 1, file);
			}
		}
	}
	if (fclose(file))
		fail(2, "cannot write %s: %s", path, strerror(errno));
}

static void make_key(const char *path)
{
	EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_id(EVP_PKEY_RSA, NULL);
	BIGNUM *three = BN_new();
	EVP_PKEY *key = NULL;
	FILE *file = fopen(path, "w");

	BN_set_word(three, 3);
	if (!file || EVP_PKEY_keygen_init(context) <= 0 || EVP_PKEY_CTX_set_rsa_keygen_bits(context, 3072) <= 0 ||
	    EVP_PKEY_CTX_set1_rsa_keygen_pubexp(context, three) <= 0 || EVP_PKEY_keygen(context, &key) <= 0 ||
	    !PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL) || fclose(file))
		fail(2, "cannot make a key in %s", path);
}

static void build(void)
{
	static struct secs secs;

	if (enclaves == MAX_ENCLAVES)
		fail(2, "more than %d enclaves", MAX_ENCLAVES);
	int device = open("/dev/sgx_enclave", O_RDWR | O_CLOEXEC);

	if (device < 0)
		fail(2, "cannot open /dev/sgx_enclave: %s", strerror(errno));
	uint8_t *room = mmap(NULL, 2 * image.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (room == MAP_FAILED)
		fail(2, "no room for %#lx bytes: %s", image.size, strerror(errno));
	base = (uint8_t *)(((uintptr_t)room + image.size - 1) / image.size * image.size);
	secs = (struct secs){
		.size = image.size,
		.base = (uint64_t)base,
		.ssa_frame_size = 1,
		.attributes = ATTRIBUTES_MODE64,
		.xfrm = XFRM_LEGACY,
	};
	struct sgx_enclave_create create = { .src = (uint64_t)&secs };

	if (ioctl(device, SGX_IOC_ENCLAVE_CREATE, &create))
		fail(2, "create: %s", strerror(errno));
	for (int i = 0; i < image.count; i++) {
		const struct segment *segment = &image.segments[i];
		uint64_t secinfo[8] __attribute__((aligned(64))) = { segment->flags };
		struct sgx_enclave_add_pages add = {
			.src = (uint64_t)segment->source,
			.offset = segment->offset,
			.length = segment->size,
			.secinfo = (uint64_t)secinfo,
			.flags = segment->measured ? SGX_PAGE_MEASURE : 0,
		};

		/* The driver may do a part, and says how much. */
		while (add.length) {
			add.count = 0;
			if (ioctl(device, SGX_IOC_ENCLAVE_ADD_PAGES, &add) && errno != EINTR && errno != EAGAIN)
				fail(2, "add pages at %#llx: %s", (unsigned long long)add.offset, strerror(errno));
			add.src += add.count;
			add.offset += add.count;
			add.length -= add.count;
		}
	}
	struct sgx_enclave_init init = { .sigstruct = (uint64_t)&signature };
	int code = ioctl(device, SGX_IOC_ENCLAVE_INIT, &init);

	if (code)
		fail(2, "init: %d %s", code, code < 0 ? strerror(errno) : "");
	for (int i = 0; i < image.count; i++) {
		const struct segment *segment = &image.segments[i];

		if (mmap(base + segment->offset, segment->size, segment->protection, MAP_SHARED | MAP_FIXED, device, 0) ==
		    MAP_FAILED)
			fail(2, "map at %#lx: %s", segment->offset, strerror(errno));
	}
	close(device);
	bases[enclaves++] = base;
}

static void operate(struct operation *operation, uint64_t page)
{
	memset(&state, 0, sizeof(state));
	state.tcs = (uint64_t)base;
	int result = enter(operation, EENTER, &state, vdso_enter, 0);

	if (result || state.function != EEXIT)
		fail(3, "page %lu: result %d, leaf %u, exception %u, error %#x, address base + %#llx", page, result,
		     state.function, state.exception_vector, state.exception_error_code,
		     (unsigned long long)(state.exception_addr - (uint64_t)base));
}

/* Where a page's word is, and what it should be: they depend on the page, so that no two pages are alike. */
static uint64_t place(uint64_t page)
{
	return (uint64_t)base + image.heap + page * PAGE + page % 511 * 8;
}

static uint64_t word(uint64_t seed, uint64_t enclave, uint64_t page)
{
	uint64_t x = (seed << 32 | enclave << 20 | page) * 0x9e3779b97f4a7c15;

	return x ^ x >> 29;
}

static void fill_one(uint64_t seed, uint64_t enclave)
{
	for (uint64_t page = 0; page < image.heap_pages; page++) {
		struct operation put = { OP_PUT, word(seed, enclave, page), place(page) };

		operate(&put, page);
	}
}

static void verify_one(uint64_t seed, uint64_t enclave)
{
	for (uint64_t page = 0; page < image.heap_pages; page++) {
		struct operation get = { OP_GET, 0, place(page) };
		uint64_t wanted = word(seed, enclave, page);

		operate(&get, page);
		if (get.value != wanted)
			fail(3, "page %lu: %#lx instead of %#lx", page, get.value, wanted);
	}
}

static void for_each_enclave(void (*work)(uint64_t seed, uint64_t enclave), uint64_t seed)
{
	for (uint64_t enclave = 0; enclave < enclaves; enclave++) {
		base = bases[enclave];
		work(seed, enclave);
	}
}

static void fill(uint64_t seed)
{
	for_each_enclave(fill_one, seed);
}

static void verify(uint64_t seed)
{
	for_each_enclave(verify_one, seed);
}

static void fork_and_share(uint64_t seed)
{
	int status;
	pid_t child = fork();

	if (!child) {
		verify(seed);
		fill(seed + 1);
		_exit(0);
	}
	if (waitpid(child, &status, 0) != child || status)
		fail(3, "the child ended with status %#x", status);
	verify(seed + 1);
}

static uint64_t number(char **arguments, int *at)
{
	if (!arguments[*at])
		fail(2, "an argument is missing");
	return strtoull(arguments[(*at)++], NULL, 0);
}

static void take_steps(char **arguments)
{
	for (int at = 0; arguments[at];) {
		const char *step = arguments[at++];

		if (!strcmp(step, "more")) {
			for (uint64_t left = number(arguments, &at); left; left--)
				build();
			printf("%lu enclaves\n", enclaves);
		} else if (!strcmp(step, "fill")) {
			fill(number(arguments, &at));
			printf("filled\n");
		} else if (!strcmp(step, "verify")) {
			verify(number(arguments, &at));
			printf("verified\n");
		} else if (!strcmp(step, "loop") || !strcmp(step, "forever")) {
			uint64_t rounds = !strcmp(step, "loop") ? number(arguments, &at) : UINT64_MAX;
			uint64_t seed = number(arguments, &at);

			for (uint64_t i = 0; i < rounds; i++) {
				fill(seed + i);
				verify(seed + i);
				printf("round %lu\n", i);
			}
		} else if (!strcmp(step, "hold")) {
			printf("holding\n");
			for (int byte = getchar(); byte != EOF && byte != '\n';)
				byte = getchar();
		} else if (!strcmp(step, "fork")) {
			fork_and_share(number(arguments, &at));
			printf("shared\n");
		} else {
			fail(2, "no step is called %s", step);
		}
	}
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 3 && !strcmp(argv[1], "key")) {
		make_key(argv[2]);
		return 0;
	}
	if (argc < 5)
		fail(2, "see the head of the source for usage");
	load_image(argv[2], strtoull(argv[4], NULL, 0));
	if (!strcmp(argv[1], "stream")) {
		write_stream(argv[3]);
		return 0;
	}
	measure();
	signature.attributes = ATTRIBUTES_MODE64;
	signature.xfrm = XFRM_LEGACY;
	memcpy(signature.measurement, image.measurement, sizeof(image.measurement));
	sign(argv[3], &signature);
	if (!strcmp(argv[1], "measure")) {
		for (size_t i = 0; i < sizeof(image.measurement); i++)
			printf("%02x", image.measurement[i]);
		printf("\n");
		return 0;
	}
	vdso_enter = find_in_vdso("__vdso_sgx_enter_enclave");
	if (!vdso_enter)
		fail(2, "the vDSO has no __vdso_sgx_enter_enclave");
	build();
	printf("built\n");
	take_steps(argv + 5);
	printf("done\n");
	return 0;
}
