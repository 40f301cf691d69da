# What nibble stands on. Read by the build and by the installed package, so that both ask for the same.
find_package(PkgConfig REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS C)
find_package(ZLIB REQUIRED)
pkg_check_modules(BLAS REQUIRED IMPORTED_TARGET openblas)
pkg_check_modules(HDF5 REQUIRED IMPORTED_TARGET hdf5)
pkg_check_modules(CJSON REQUIRED IMPORTED_TARGET libcjson)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
set(NIBBLE_DEPENDENCIES PkgConfig::BLAS PkgConfig::HDF5 PkgConfig::CJSON PkgConfig::PCRE2 PkgConfig::UTF8PROC
                        ZLIB::ZLIB OpenMP::OpenMP_C)

# oneDNN has no pkg-config file in Debian.
set(DNNL_FOUND FALSE)
if(NIBBLE_ONEDNN)
  find_library(DNNL_LIBRARY dnnl)
  find_path(DNNL_INCLUDE oneapi/dnnl/dnnl.h)
  if(DNNL_LIBRARY AND DNNL_INCLUDE)
    set(DNNL_FOUND TRUE)
    if(NOT TARGET NIBBLE::dnnl)
      add_library(NIBBLE::dnnl UNKNOWN IMPORTED)
      set_target_properties(NIBBLE::dnnl PROPERTIES IMPORTED_LOCATION ${DNNL_LIBRARY}
        INTERFACE_INCLUDE_DIRECTORIES ${DNNL_INCLUDE})
    endif()
    list(APPEND NIBBLE_DEPENDENCIES NIBBLE::dnnl)
  endif()
endif()
