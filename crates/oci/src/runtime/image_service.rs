//! The CRI image service over the image store.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tonic::{Request, Response, Status};

use super::Runtime;
use super::service::pages;
use crate::cri::v1::{self, image_service_server::ImageService};
use crate::images::{Auth, Image, ImageError};
use crate::shim::now_nanoseconds;

/// The CRI image service of the embedded runtime.
pub struct ImageServiceImpl(pub(super) Arc<Runtime>);

type Answer<T> = Result<Response<T>, Status>;

impl ImageServiceImpl {
    async fn store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Runtime) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, Status> {
        let runtime = self.0.clone();
        tokio::task::spawn_blocking(move || work(&runtime))
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| status(&error))
    }

    async fn list(&self, filter: Option<v1::ImageFilter>) -> Result<Vec<v1::Image>, Status> {
        let wanted = filter
            .and_then(|filter| filter.image)
            .map(|image| image.image)
            .filter(|image| !image.is_empty());
        let images = self
            .store(move |runtime| match wanted {
                Some(wanted) => Ok(runtime.images.status(&wanted)?.into_iter().collect()),
                None => runtime.images.list(),
            })
            .await?;
        Ok(images.iter().map(item).collect())
    }
}

fn name(image: Option<v1::ImageSpec>) -> Result<String, Status> {
    image
        .map(|image| image.image)
        .filter(|image| !image.is_empty())
        .ok_or_else(|| Status::invalid_argument("image is missing"))
}

fn status(error: &ImageError) -> Status {
    match error {
        ImageError::NotFound(_) => Status::not_found(error.to_string()),
        ImageError::InvalidReference { .. } => Status::invalid_argument(error.to_string()),
        _ => Status::unknown(error.to_string()),
    }
}

fn item(image: &Image) -> v1::Image {
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = if user.is_empty() {
        Some(0)
    } else {
        user.parse().ok()
    };
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        username: if uid.is_some() {
            String::new()
        } else {
            user.to_owned()
        },
        uid: uid.map(|value| v1::Int64Value { value }),
        spec: Some(v1::ImageSpec {
            image: image.id.clone(),
            ..Default::default()
        }),
        pinned: false,
    }
}

fn auth(config: Option<v1::AuthConfig>) -> Auth {
    let Some(config) = config else {
        return Auth::Anonymous;
    };
    if !config.username.is_empty() {
        return Auth::Basic {
            username: config.username,
            password: config.password,
        };
    }
    if !config.identity_token.is_empty() {
        return Auth::IdentityToken(config.identity_token);
    }
    if !config.registry_token.is_empty() {
        return Auth::RegistryToken(config.registry_token);
    }
    Auth::from_encoded(&config.auth).unwrap_or_default()
}

#[tonic::async_trait]
impl ImageService for ImageServiceImpl {
    type StreamImagesStream =
        Pin<Box<dyn Stream<Item = Result<v1::StreamImagesResponse, Status>> + Send>>;

    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Answer<v1::ListImagesResponse> {
        let images = self.list(request.into_inner().filter).await?;
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let images = self.list(request.into_inner().filter).await?;
        Ok(Response::new(pages(images, |images| {
            v1::StreamImagesResponse { images }
        })))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        let request = request.into_inner();
        let wanted = name(request.image)?;
        let image = self
            .store(move |runtime| runtime.images.status(&wanted))
            .await?;
        let mut info = std::collections::HashMap::new();
        if request.verbose
            && let Some(image) = &image
            && let Ok(config) = serde_json::to_string(&image.config)
        {
            info.insert("config".to_owned(), config);
        }
        Ok(Response::new(v1::ImageStatusResponse {
            image: image.as_ref().map(item),
            info,
        }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Answer<v1::PullImageResponse> {
        let request = request.into_inner();
        let wanted = name(request.image)?;
        let auth = auth(request.auth);
        // A pull goes on when the caller goes away: the next one finds what is there.
        let runtime = self.0.clone();
        let pulled = tokio::spawn(async move {
            let options = &runtime.config.pull;
            runtime
                .images
                .pull(&wanted, &auth, options, Arc::new(()))
                .await
        });
        let image = pulled
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| status(&error))?;
        Ok(Response::new(v1::PullImageResponse {
            image_ref: image.id,
        }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        let wanted = name(request.into_inner().image)?;
        self.store(move |runtime| runtime.images.remove(&wanted))
            .await?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Answer<v1::ImageFsInfoResponse> {
        let (layers, snapshots) = self
            .store(|runtime| {
                let layers = runtime.images.fs_usage()?;
                let mut snapshots = crate::images::Usage::default();
                for id in runtime.images.snapshot_ids()? {
                    // One may be removed at this moment.
                    if let Ok(usage) = runtime.images.snapshot_usage(&id) {
                        snapshots.bytes += usage.bytes;
                        snapshots.inodes += usage.inodes;
                    }
                }
                Ok((layers, snapshots))
            })
            .await?;
        let usage = |bytes, inodes| v1::FilesystemUsage {
            timestamp: now_nanoseconds(),
            fs_id: Some(v1::FilesystemIdentifier {
                mountpoint: layers.mountpoint.to_string_lossy().into_owned(),
            }),
            used_bytes: Some(v1::UInt64Value { value: bytes }),
            inodes_used: Some(v1::UInt64Value { value: inodes }),
        };
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![usage(layers.bytes, layers.inodes)],
            container_filesystems: vec![usage(snapshots.bytes, snapshots.inodes)],
        }))
    }
}
